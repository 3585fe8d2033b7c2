"""The check of a token tree against its tokenizer: in which way canonical paths can be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence

import numpy as np

from hf_exposure.tree.walkable import WAYS, WalkableTree
from hf_exposure.utils.arrays import Bools, Ints

SMALL = 4096  # spaces up to this size are checked string by string

_Search = Generator[Ints, Bools, "Ints | None"]


def choose_way(tree: WalkableTree, known: list[Ints]) -> float:
    """Choose the cheapest way that misses none of the canonical paths that are known.

    Returns:
        The share of random leaves that are not canonical under it.
    """
    automaton = tree.automaton
    if _count_paths(automaton.token_steps, automaton.accepting) == automaton.size:
        tree.choose("single", proved=True)
        return 0.0
    choice: tuple[str, float] | None = None
    for way in WAYS[1:]:
        tree.choose(way)
        if tree.missed(known):
            continue
        if automaton.size <= SMALL and way != "leaves" and _count_walkable(tree) == automaton.size:
            # All canonical paths are in the tree; as many paths as strings means no others.
            tree.choose(way, proved=True)
            return 0.0
        false_share = _false_share(tree)
        if choice is None or false_share < choice[1] / 2:
            choice = way, false_share
        if choice[1] < 0.1:
            break
    assert choice is not None  # `leaves` refuses nothing
    tree.choose(choice[0])
    return choice[1]


def _false_share(tree: WalkableTree, tries: int = 200) -> float:
    """The share of leaves, reached by random steps, that the tokenizer writes otherwise."""
    leaves: dict[int, list[Ints]] = {}
    for path in _found(tree, [_search(tree, np.random.default_rng([2, n])) for n in range(tries)]):
        leaves.setdefault(len(path), []).append(path)
    fit = [tree.tests.texts_fit(np.array(paths)) for paths in leaves.values()]
    return 1.0 - float(np.mean(np.concatenate(fit))) if fit else 1.0


def _found(tree: WalkableTree, searches: Sequence[_Search]) -> list[Ints]:
    """The leaves that searches come to. All go on together, so that the tokenizer is asked for
    the steps of all of them at once."""
    asking = [(search, next(search)) for search in searches]
    found: list[Ints] = []
    while asking:
        by_depth: dict[int, list[tuple[_Search, Ints]]] = {}
        for search, paths in asking:
            by_depth.setdefault(paths.shape[1], []).append((search, paths))
        asking = []
        for some in by_depth.values():
            fit = tree.possible(np.concatenate([paths for _, paths in some]))
            parts = np.split(fit, np.cumsum([len(paths) for _, paths in some])[:-1])
            for (search, _), part in zip(some, parts, strict=True):
                try:
                    asking.append((search, search.send(part)))
                except StopIteration as end:
                    found += [end.value] if end.value is not None else []
    return found


def _search(tree: WalkableTree, draw: np.random.Generator, steps: int = 300) -> _Search:
    """Look for a leaf by random steps, one back from where none leads on. Yields paths to be
    told which of them are possible; returns the leaf's path, or None if not soon."""
    path: list[int] = []
    trail = [_shuffled(tree, 0, draw)]
    for _ in range(steps):
        tokens, states = trail[-1]
        if len(tokens):
            some = np.array([[*path, token] for token in tokens[:16].tolist()])
            fit = np.flatnonzero((yield some))
            went = int(fit[0]) + 1 if len(fit) else min(16, len(tokens))
            trail[-1] = tokens[went:], states[went:]
            if len(fit):
                path.append(int(tokens[went - 1]))
                state = int(states[went - 1])
                if tree.leaf[state]:
                    return np.array(path)
                trail.append(_shuffled(tree, state, draw))
        elif len(trail) > 1:
            trail.pop()
            path.pop()
        else:
            break
    return None


def _shuffled(tree: WalkableTree, state: int, draw: np.random.Generator) -> tuple[Ints, Ints]:
    tokens, states = tree.allowed[state]
    order = draw.permutation(len(tokens))
    return tokens[order], states[order]


def _count_walkable(tree: WalkableTree) -> int | None:
    """How many leaves the walk would come to, or None if it is long in finding them; only for
    small spaces."""
    found, visited = 0, 0
    states, paths = np.array([0]), np.zeros((1, 0), dtype=np.int64)
    while len(states):
        visited += len(states)
        if visited > 8 * SMALL:
            return None
        last = paths[:, -1] if paths.shape[1] else np.array([-1])
        children = tree.all_children(tree.key(states, last).tolist())
        row = np.repeat(np.arange(len(states)), [len(tokens) for tokens, _ in children])
        tokens = np.concatenate([tokens for tokens, _ in children])
        states = np.concatenate([following for _, following in children])
        paths = np.concatenate([paths[row], tokens[:, None]], axis=1)
        fit = tree.possible(paths)
        found += int(tree.leaf[states[fit]].sum())
        inner = fit & ~tree.leaf[states]
        states, paths = states[inner], paths[inner]
    return found


def _count_paths(steps: list[dict[int, int]], accepting: frozenset[int]) -> int:
    """The number of token paths from the start to an accepting state."""
    # Very many tokens lead to few states.
    ways = [Counter(step.values()) for step in steps]
    counts: dict[int, int] = {}
    stack = [0]
    while stack:
        state = stack[-1]
        todo = [to for to in ways[state] if to not in counts]
        if todo:
            stack.extend(todo)
            continue
        counts[state] = (state in accepting) + sum(n * counts[to] for to, n in ways[state].items())
        stack.pop()
    return counts[0]
