"""Wraps a home's data key under a key of AWS KMS, which never leaves it. Credentials and region: as boto3 finds them."""

from typing import Any

import boto3
from botocore import exceptions

from macadam.errors import SettingInvalid, Unavailable


class AwsKms:
    """key: id, ARN or alias of a symmetric key."""

    def __init__(self, key: str) -> None:
        if not key:
            raise SettingInvalid("MACADAM_KEY_KMS names no key.", next_step="Write it as aws:KEY, an id, ARN or alias.")
        self._key = key

    def wrap(self, key: bytes, context: str) -> bytes:
        """Raises SettingInvalid, Unavailable."""
        made = self._call("encrypt", Plaintext=key, EncryptionContext={"use": context})
        return bytes(made["CiphertextBlob"])

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """Raises SettingInvalid if the key is another or may not be used, Unavailable."""
        return bytes(self._call("decrypt", CiphertextBlob=wrapped, EncryptionContext={"use": context})["Plaintext"])

    def _call(self, what: str, **arguments: object) -> Any:
        try:
            client: Any = boto3.client("kms")  # type: ignore[no-untyped-call]
            return getattr(client, what)(KeyId=self._key, **arguments)
        except exceptions.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            raise SettingInvalid(
                f"AWS KMS refuses to {what} with {self._key}: {code}.",
                next_step="Check MACADAM_KEY_KMS, the region, and that this role may use the key.",
            ) from error
        except exceptions.BotoCoreError as error:
            raise Unavailable(
                f"AWS KMS cannot be asked: {error}.", next_step="Check the network, the region and the credentials."
            ) from error
