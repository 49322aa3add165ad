"""Check the compressed indexes below an `--out`: everything that a search by them would refuse.

The code is that of a search: it reads the model, and puts the codes of each file into an index of their own.
"""

from __future__ import annotations

from id2core.errors import DatasetError, SearchError
from id2core.runs import codes, leftovers
from id2core.runs.checkup import Checked, Fault
from id2core.search.coded import CodedReferences
from id2core.search.flat import load_faiss
from id2core.store import schemas, storage
from id2core.store.datasets import SUCCESS, Dataset


def check(out: str, done: Checked) -> None:
    """Check the index beside each corpus below an `--out`, after `checkup.check`, and add what is wrong.

    Args:
        out: a normalized place.
        done: what was checked. An index with a damaged file or commit is in its findings, and is left out.
    """
    for place in leftovers.places(out):
        uri = storage.join(place, codes.INDEX)
        name = uri.removeprefix(f"{out}/")
        if any(found.place == name or found.place.startswith(f"{name}/") for found in done.findings):
            continue
        try:
            references = Dataset.find_own(storage.join(place, schemas.EMBEDDINGS))
        except DatasetError:
            continue  # the check of the references has found it
        if references is not None:
            _check(references, name, done)
        elif storage.exists(storage.join(uri, SUCCESS)):
            done.add(Fault.INDEX, name, "there are no references beside it", f"delete {uri}")


def _check(references: Dataset, name: str, done: Checked) -> None:
    try:
        index = codes.find(references)
    except DatasetError as error:
        done.add(Fault.INDEX, name, str(error), "move it elsewhere, or delete it")
        return
    if index is None:
        return
    coded = CodedReferences(references, index)
    try:
        build = f"id2 index --index {coded.form.text} with the --out that it is in"
    except SearchError as error:
        done.add(Fault.INDEX, name, str(error), f"delete {index.uri}")
        return
    try:
        load_faiss()
    except SearchError as error:
        done.add(Fault.INDEX, name, str(error), "check it where FAISS is installed")
        return
    try:
        if problem := coded.problem or coded.surplus:
            mend = f"{build}, or a scan or a night by this index; or delete {index.uri}"
            done.add(Fault.INDEX, name, f"it {problem}", mend)
            return
        model = coded.model()
        for file in references.files:
            model.over([coded.read(file)])
    except (DatasetError, SearchError) as error:
        done.add(Fault.INDEX, name, str(error), build.replace(" with", " --anew with"))
