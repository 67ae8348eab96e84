"""Which pieces of code may have changed a number, the likeliest first. The notebook `98_verify` shows it."""
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ._arms import VerifyError
from ._definitions import Code
from ._project import git
from ._verify_pairs import package_of, unpack

_MANY = 12  # names in a certificate
_RECORDER = {"runs", "_reach", "records", "_attempts"}  # named last: how a run is kept decides least


def code_at(
    root: Path,    # project folder
    commit: str,   # an old one
) -> Code:
    "The library and all experiments of a commit, in pieces; VerifyError where git does not have it"
    there = git(root, "ls-tree", "-r", "--name-only", commit, "refine_nb", "experiments")
    if there is None: raise VerifyError(f"there is no commit {commit} here")
    paths = [n for n in there.splitlines() if n.endswith((".py", ".ipynb"))]
    with tempfile.TemporaryDirectory(prefix="refine_nb_verify_") as folder:
        if paths: unpack(root, commit, paths, Path(folder))
        code = Code(Path(folder), package_of(Path(folder)))
        for path in Path(folder).glob("experiments/*.ipynb"): code.cells(path.stem)
    return code


def differing(
    then: Code,  # an older state
    now: Code,   # today
) -> set[str]:
    "Pieces of the library that differ, are gone, or are new"
    return {n for n in then.digests.keys() | now.digests.keys() if then.digests.get(n) != now.digests.get(n)}


class Suspects:
    "Names the pieces that an arm executes and that have changed: since it was last equal, else since it was recorded"

    def __init__(self,
        root: Path,               # project folder
        code: Code,               # of today
        since: str | None = None, # a commit to compare with, whatever earlier certificates say
    ):
        self.root, self.code, self.since, self.codes = root, code, since, {}

    def at(self, commit: str) -> Code:
        "The code of a commit, read once"
        if commit not in self.codes: self.codes[commit] = code_at(self.root, commit)
        return self.codes[commit]

    def nearest(self,
        certificate: Mapping[str, str] | None,  # the arm's earlier one
        names: frozenset,                       # what the arm executed then
        then: Code,                             # of the commit that recorded it
    ) -> Code:
        "The latest code that is known to give the recorded numbers, or that of the commit asked about"
        if self.since: return self.at(self.since)
        if not certificate or certificate["outcome"] != "equal": return then
        try: code = self.at(certificate["today"])
        except VerifyError: return then
        same = code.digest_of(certificate["experiment"], names) == certificate["code"]
        return code if same else then  # else the comparison was made with code that no commit holds

    def named(self,
        experiment: str,   # name of the notebook
        names: frozenset,  # what the arm executes, or executed before
        near: Code,        # from `nearest`
    ) -> list[str]:
        "What differs from that code, imports and the recorder last; of many, the first ones"
        cells = [f"experiments/{experiment}"] if self.code.cells(experiment)[0] != near.cells(experiment)[0] else []
        last = lambda n: (n in self.code.imports, n.partition(".")[0] in _RECORDER, n)
        changed = sorted(names & differing(near, self.code), key=last)
        more = [f"and {len(changed) - _MANY} more"] if len(changed) > _MANY else []
        return cells + changed[:_MANY] + more
