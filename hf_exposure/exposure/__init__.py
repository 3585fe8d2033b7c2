"""From log-perplexities to exposure: the plan, the estimators, the results."""
