"""Keys of entities, as they are asked for."""

from __future__ import annotations

from uuid import UUID

LONGEST_KEY = 200
Key = str | int | UUID


def text_of(entity_id: Key) -> str:
    """A key as the warehouse has it.

    Raises:
        TypeError: a key is text, a whole number or a UUID.
        ValueError: no key can be this.
    """
    if isinstance(entity_id, bool) or not isinstance(entity_id, str | int | UUID):
        raise TypeError(f"a key is text, a whole number or a UUID, and {entity_id!r} is neither")
    key = str(entity_id)
    odd = "\0" in key or any("\ud800" <= letter <= "\udfff" for letter in key)
    if odd or not 1 <= len(key) <= LONGEST_KEY:
        raise ValueError(
            f"no key can be {key[:50]!r} ({len(key):,} characters): it has 1 to {LONGEST_KEY}, "
            f"without NUL and half surrogate pairs"
        )
    return key


def fits_a_path(key: str) -> bool:
    """Whether no client, proxy or server on the way makes another path of it."""
    return not {".", ".."} & set(key.split("/")) and "\n" not in key and "//" not in f"/{key}/"
