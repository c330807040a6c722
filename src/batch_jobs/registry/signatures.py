"""Which keys sign and verify in a deployment, and what each has signed: to change one in peace."""

from __future__ import annotations

from dataclasses import dataclass

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.registry import signing, versions
from batch_jobs.settings import HASH_ONLY, Settings


@dataclass(frozen=True)
class Key:
    """A key of signatures.

    Attributes:
        name: its id; None for versions without a signature, or with one of an older release by a
            key that is not known here.
        signs: whether what is trained here is signed by it.
        verifies: whether what it has signed is loaded here.
        versions: how many versions that can be loaded it has signed.
        champions: the models whose champion it has signed.
    """

    name: str | None
    signs: bool
    verifies: bool
    versions: int
    champions: tuple[str, ...]


def keys(settings: Settings, warehouse: Warehouse) -> list[Key]:
    """The keys of the settings, and those that have signed a version that can be loaded.

    Raises:
        ConfigurationError: a file holds no key, or others may read the one that signs.
    """
    signer = settings.signing_key and signing.key_id(
        signing.private_key(settings.signing_key).public_key()
    )
    checks = settings.verify_key != HASH_ONLY
    accepted = list(signing.public_keys(settings.verify_key)) if checks else []
    signed: dict[str | None, list[str | None]] = {
        name: [] for name in dict.fromkeys([*([signer] if signer else []), *accepted])
    }
    for version, serves in versions.manifests(warehouse):
        manifest = versions.whole_manifest(warehouse, version)
        by = signing.signed_by(manifest, settings.verify_key if checks else None)
        signed.setdefault(by, []).append(version.model if serves else None)
    return [
        Key(
            name=name,
            signs=name is not None and name == signer,
            verifies=not checks or name in accepted,
            versions=len(models),
            champions=tuple(sorted(filter(None, models))),
        )
        for name, models in signed.items()
    ]
