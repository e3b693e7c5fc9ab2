"""Match the class names of datasets and models, and make them unique for formats that need one name per class."""

import re
from collections import Counter
from collections.abc import Sequence

from .errors import InputError, counted


def unique_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Make names unique: a name that occurs more than once gets its index appended, such as "crane (134)"."""
    counts = Counter(classes)
    names = tuple(name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(classes))
    return names if len(set(names)) == len(names) or not names else unique_names(names)


def match_classes(given: tuple[str, ...], known: tuple[str, ...]) -> list[int]:
    """For each class of a dataset, the index of the matching class of the model.

    If both lists of classes are equal, they match index by index. Otherwise, the exact name from `unique_names` is
    tried first. If the model has the classes of ImageNet-1K, their WordNet IDs are tried next. Last, the name and its
    comma-separated synonyms are compared. This comparison ignores case and treats `_` and `-` as spaces.

    Raises:
        InputError: The model does not know a class, a name matches several classes of the model, or two classes of the
            dataset match the same class of the model.
    """
    if given == known:
        return list(range(len(known)))
    exact = {name: index for index, name in enumerate(unique_names(known))}
    ids = _wordnet_ids(known)
    exact |= {name: index for index, name in enumerate(ids)}
    alike: dict[str, set[int]] = {}
    for index, name in enumerate(known):
        for alias in (name, *name.split(",")):
            alike.setdefault(_plain(alias), set()).add(index)
    fitting = [{exact[name]} if name in exact else alike.get(_plain(name), set()) for name in given]
    if unknown := [name for name, indices in zip(given, fitting, strict=True) if not indices]:
        raise InputError(
            f"the model does not know {len(unknown)} of the dataset's {counted(len(given), 'class', 'classes')}, such "
            f"as {unknown[0]!r}; the model's classes ({len(known)}) are: {', '.join(known[:5])}"
            f"{', …' if len(known) > 5 else ''}"
        )
    found: dict[int, str] = {}
    for name, indices in zip(given, fitting, strict=True):
        if len(indices) > 1:
            raise InputError(
                f"class {name!r} of the dataset matches {len(indices)} classes of the model: "
                f"{' and '.join(_choice(index, known, ids) for index in sorted(indices))}. Rename it to the exact name"
                f"{' or WordNet ID' if ids else ''} of one of them"
            )
        [index] = indices
        if index in found:
            raise InputError(
                f"classes {found[index]!r} and {name!r} of the dataset both match the model's class "
                f"{_choice(index, known, ids)}. Merge or rename them"
            )
        found[index] = name
    return list(found)


def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1,000 classes of ImageNet-1K, in the order of the logits."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(1000))


def _choice(index: int, known: Sequence[str], ids: Sequence[str]) -> str:
    return f"{index} {unique_names(known)[index]!r}" + (f" ({ids[index]})" if ids else "")


def _wordnet_ids(known: Sequence[str]) -> Sequence[str]:
    """The WordNet ID of each class, such as n01440764, if the classes are those of ImageNet-1K; otherwise empty."""
    if len(known) != 1000:
        return ()
    from timm.data import ImageNetInfo

    first = [[name.partition(",")[0] for name in names] for names in (known, imagenet_classes())]
    return ImageNetInfo("imagenet-1k").label_names() if first[0] == first[1] else ()


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_\-]+", name.casefold().strip()))
