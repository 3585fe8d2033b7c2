"""Canaries in corpora of many machines, by datatrove: steps that count, insert and verify.

Each task inserts its own share, which the manifest alone decides: restarts change nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar

from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep

from hf_exposure.canaries.commitment import manifest_commitment
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.places import Copies, splice
from hf_exposure.canaries.search import Search, TextSearch, search_of
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.shards import check_same_shards, share_of
from hf_exposure.canaries.survival import InjectionReport
from hf_exposure.canaries.tally import Tally
from hf_exposure.canaries.token_files import token_file
from hf_exposure.utils.checks import check_count, check_path
from hf_exposure.utils.names import raise_alone

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Documents = Iterable[Document]
_FILE = re.compile(r"[0-9]{5,}\.json")  # of a task
_TOKENIZED = ("*.bin", "*.ds")  # what datatrove's tokenizers write


class _Hidden:
    """A value that the executor's JSON and logs tell nothing of."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __str__(self) -> str:
        return type(self.value).__name__


def _alone(function: Callable[..., T], *arguments: Any) -> T:
    """What a function gives. Its errors lose what led to them: datatrove's logs show the values of
    variables there, such as a manifest's text."""
    try:
        return function(*arguments)
    except Exception as error:
        alone = error.with_traceback(None)
    raise_alone(alone)


class _TaskFiles:
    """A file of JSON for each task, in a folder that all tasks reach."""

    def __init__(self, folder: Any, what: str) -> None:
        self.folder, self.what = get_datafolder(folder), what

    def __str__(self) -> str:
        return str(self.folder.path)

    def write(self, rank: int, tasks: int, data: dict[str, Any]) -> None:
        """Save what a task has found, once it has seen all of its documents."""
        with self.folder.open(f"{rank:05d}.json", "wt") as file:
            file.write(json.dumps({"tasks": tasks, **data}))

    def read(self, tasks: int | None = None) -> list[dict[str, Any]]:
        """What all tasks have found, in order.

        Raises:
            ValueError: some tasks are not done, or there were more or fewer of them.
        """
        names = sorted(filter(_FILE.fullmatch, self.folder.list_files()))
        found = {int(name[:-5]): self._load(name) for name in names}
        tasks = tasks or next((one["tasks"] for one in found.values()), 1)
        other = sorted({one["tasks"] for one in found.values()} - {tasks})
        if other:
            raise ValueError(
                f"{self.what} in {str(self)!r} are of {other[0]} tasks, not {tasks}; use the same "
                "number of tasks, or an empty folder"
            )
        lacking = [rank for rank in range(tasks) if rank not in found]
        if lacking:
            raise ValueError(
                f"{self.what} in {str(self)!r} lack {len(lacking)} of {tasks} tasks, the first of "
                f"them {lacking[0]}; run them first (depends=)"
            )
        return [found[rank] for rank in range(tasks)]

    def _load(self, name: str) -> dict[str, Any]:
        with self.folder.open(name, "rt") as file:
            try:
                data = json.loads(file.read())
                return {**data, "tasks": int(data["tasks"])}
            except (ValueError, TypeError, KeyError):  # a task is writing it, or was killed there
                raise ValueError(
                    f"{self.what}: {name} in {str(self)!r} is not whole; run that task again"
                ) from None


class CountDocuments(PipelineStep):  # type: ignore[misc] # datatrove has no types
    """A step that counts the documents of each task, which `InsertCanaries` must know beforehand.

    Documents pass unchanged. Put it behind the very steps that will come before `InsertCanaries`,
    and run it with as many tasks.

    Usage:

        reader = JsonlReader("filtered")
        count = LocalPipelineExecutor([reader, CountDocuments("counts")], tasks=8)

    Args:
        counts: a folder that all tasks reach, on disk or of any file system that fsspec knows.
    """

    type = "Canaries"
    name = "Count documents"

    def __init__(self, counts: Any) -> None:
        super().__init__()
        self.counts = _TaskFiles(counts, "the counts")

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Count the documents of one task as they pass."""
        seen = 0
        for document in data:
            seen += 1
            yield document
        self.stat_update("documents", value=seen)
        self.counts.write(rank, world_size, {"documents": seen})


class InsertCanaries(PipelineStep):  # type: ignore[misc]
    """A step that inserts canaries into the documents of each task.

    Put it after deduplication and filters, which would remove canaries, and before tokenization.

    Usage:

        canaries.save("canaries.json")
        count = LocalPipelineExecutor([reader, CountDocuments("counts")], tasks=8)
        insert = LocalPipelineExecutor(
            [reader, InsertCanaries("canaries.json", "counts"), tokenizer], tasks=8, depends=count
        )

    Guarantees:
        - Over all tasks each canary is inserted exactly `repetitions` times; controls are not.
        - The documents of all tasks, one after another, are what `inject_canaries` makes of a
          dataset of these documents with the same seed.
        - A task that runs again inserts the same copies, whatever the others have done.
        - Memory does not grow with the corpus: only with the copies and the number of tasks.

    The insertion goes on the manifest's record, by whichever task is first. A task that finds
    another number of documents than was counted fails, and so does a run with another number of
    tasks than the record has.

    Args:
        manifest: the file that `Canaries.save` wrote, where all tasks reach it. Neither datatrove's
            logs nor the jobs that it writes hold the secrets then. A set itself also does where the
            counts are a list; the insertion goes on its record at once.
        counts: the folder of `CountDocuments`, or the number of documents of each task, if known.
        seed, mode, near_start: see `CanaryInjector`.
        metadata: of the added documents, such as {"lang": "en"}; all other keys of the document
            beside it are there with None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range; in use, see above.
    """

    type = "Canaries"
    name = "Insert canaries"

    def __init__(
        self,
        manifest: str | os.PathLike[str] | Canaries,
        counts: Any,
        seed: int = 0,
        mode: str = "rows",
        near_start: bool = False,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        counts = counts.tolist() if hasattr(counts, "tolist") else counts  # an array
        listed = isinstance(counts, Sequence) and not isinstance(counts, str)
        known = listed and all(isinstance(count, Integral) for count in counts)
        insertion = Insertion(
            mode=mode,
            seed=check_count("InsertCanaries: seed", seed),
            near_start=near_start,
            shards=counts if known else None,
        )
        self.insertion = _Hidden(insertion)
        self.counts = None if known else _TaskFiles(counts, "the counts")
        self.metadata = dict(metadata or {})
        if isinstance(manifest, Canaries):
            if not known:
                raise ValueError(
                    "InsertCanaries: manifest is a set, on whose record tasks cannot put what they "
                    "count; save it and give the path, or give counts as a list of numbers"
                )
            manifest.record(insertion)
            self.manifest = _Hidden(manifest.copy())
        else:
            self.manifest = _Hidden(check_path("InsertCanaries: manifest", manifest))

    def record(self, tasks: int) -> Insertion:
        """Put the insertion on the manifest's record, which the first task does otherwise.

        With thousands of tasks, call it between counting and inserting: then no task reads all
        counts.

        Args:
            tasks: how many tasks insert.

        Returns:
            The insertion.

        Raises:
            ValueError: documents were counted for another number of tasks, or not all were.
        """
        return self._inserted(tasks)[1]

    def _inserted(self, tasks: int) -> tuple[Canaries, Insertion]:
        """The canaries, and the insertion that stands on their record."""
        manifest, insertion = self.manifest.value, self.insertion.value
        if isinstance(manifest, Canaries):
            check_same_shards(insertion, tasks)
            return manifest, insertion
        canaries = Canaries.load(manifest)
        plain = replace(insertion, shards=None, num_examples=None)
        for one in canaries.insertions:
            if one.shards is not None and plain == replace(one, shards=None, num_examples=None):
                check_same_shards(one, tasks, insertion.shards)
                return canaries, one
        if self.counts is not None:
            shards = [one["documents"] for one in self.counts.read(tasks)]
            insertion = replace(insertion, shards=shards)
        check_same_shards(insertion, tasks)
        canaries.record(insertion)
        try:
            canaries.save(manifest)
        except FileExistsError:  # another run has put its own on record meanwhile
            return self._inserted(tasks)
        return canaries, insertion

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Insert the share of one task."""
        canaries, insertion = _alone(self._inserted, world_size)
        share = share_of(canaries, insertion, rank)
        seen, numbers = 0, itertools.count()

        def added(copies: Copies, beside: Document) -> Iterator[Document]:
            for _, canary in copies:
                metadata = {**dict.fromkeys(beside.metadata), **self.metadata}
                name = f"canary/{rank:05d}/{next(numbers)}"
                yield Document(canary.text, name, metadata=metadata)

        for document in data:
            copies = share.places.get(seen, [])
            seen += 1
            share.check(seen)
            if insertion.mode == "rows":
                yield from added(copies, document)
            elif copies:
                document.text = splice(document.text or "", copies)
            yield document
        share.check(seen, ended=True)
        if seen in share.places:  # behind the last document of all
            yield from added(share.places[seen], document)
        self.stat_update("copies", value=share.copies)


class VerifyCanaries(PipelineStep):  # type: ignore[misc]
    """A step that looks for every canary, in documents as they pass or in tokenized files.

    Usage:

        verify = VerifyCanaries("canaries.json", "found", tokenizer=tokenizer, tokenized="tokens")
        LocalPipelineExecutor([verify], tasks=8).run()
        verify.report().raise_if_lost()

    Args:
        manifest: the file that `Canaries.save` wrote, or the set.
        results: a folder that all tasks reach, for what each of them has found; no secrets.
        tokenizer: the one that tokenized the files; None looks through the documents that pass.
        tokenized: the folder of the files that `MegatronDocumentTokenizer` (.bin and .idx) or
            `DocumentTokenizer` (.ds and .ds.index) wrote; the tasks share them.

    Raises:
        ValueError: one of `tokenizer` and `tokenized` is there without the other.
    """

    type = "Canaries"
    name = "Verify canaries"

    def __init__(
        self,
        manifest: str | os.PathLike[str] | Canaries,
        results: Any,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tokenized: Any = None,
    ) -> None:
        super().__init__()
        if (tokenizer is None) != (tokenized is None):
            raise ValueError("VerifyCanaries: give both tokenizer and tokenized, or neither")
        is_set = isinstance(manifest, Canaries)
        self.manifest = _Hidden(
            manifest if is_set else check_path("VerifyCanaries: manifest", manifest)
        )
        self.results = _TaskFiles(results, "the results")
        self.tokenizer = _Hidden(tokenizer)
        self.tokenized: Any = None if tokenized is None else get_datafolder(tokenized)

    def _search(self) -> tuple[Search | TextSearch, str | None]:
        """What looks for the canaries, and what tells their manifest from others."""
        known, of = self.manifest.value, None
        if not isinstance(known, Canaries):  # which loses its salt on the way to a task
            known = Canaries.load(known)
            of = None if known.salt is None else manifest_commitment(known)
        return search_of(known, self.tokenizer.value), of

    def run(
        self, data: Documents | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Look through the documents, or the files, of one task."""
        search, of = _alone(self._search)
        if isinstance(search, TextSearch):
            for document in data or ():
                search.read(document.text or "")
                yield document
        else:
            yield from data or ()
            folder = self.tokenized
            names = [name for glob in _TOKENIZED for name in folder.list_files(glob_pattern=glob)]
            for name in sorted(names)[rank::world_size]:
                search.scan(token_file(folder.open, name, len(self.tokenizer.value)).chunks())
        self.stat_update("copies", value=sum(search.tally.whole.values()))
        self.results.write(rank, world_size, {"manifest": of, **search.tally.to_dict()})

    def report(self) -> InjectionReport:
        """What has become of each canary in the documents of all tasks.

        Raises:
            ValueError: some tasks are not done, or have looked for the canaries of another
                manifest.
        """
        search, of = self._search()
        results = self.results.read()
        if any(one["manifest"] != of for one in results):
            raise ValueError(
                f"the results in {str(self.results)!r} are of another manifest; run all tasks "
                "again, with another logging_dir, as datatrove skips tasks that were complete"
            )
        search.tally = Tally.total(map(Tally.from_dict, results))
        return search.report()
