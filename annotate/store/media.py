"""Images by opaque token: what reaches a browser names no model, no seed and no file."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select

from annotate.assignment import keyed_digest
from annotate.store.engine import StoreBase
from annotate.store.errors import NotFoundError, StoreError
from annotate.store.models import User
from annotate.tables import CandidateRow, PromptRow, TaskCandidateRow, TaskRow, UserRow

_MAC_BYTES = 16


class MediaStore(StoreBase):
    """The part of a store that lets people see images.

    A token is sealed for one user: encrypted under the store's secret and authenticated, so it
    needs no table, stays the same for the same view (browsers may cache) and opens for nobody else.
    """

    def media(self, user_id: int, token: str) -> Path:
        """The PNG file behind a token of this user.

        Tokens from a claim show the images of the user's own tasks, those from `example_token` an
        image of the guideline; those from `media_token` any candidate, for as long as the user is
        a reviewer or above.

        Raises:
            NotFoundError: no such image for this user; the same error whatever the reason.
        """
        refused = NotFoundError("there is no such image for this user", code="no_image")
        kind, _, name = self._unseal(user_id, token, refused).partition(":")
        query: Select[Any] = select(CandidateRow.image_sha256)
        if kind == "source":
            query = (
                select(PromptRow.source_image)
                .join(TaskRow, TaskRow.prompt_id == PromptRow.id)
                .where(TaskRow.id == name)
            )
        elif kind in ("candidate", "example"):
            query = query.where(CandidateRow.id == name)
        else:
            task_id, _, ordinal = name.partition(":")
            query = query.join(
                TaskCandidateRow, TaskCandidateRow.candidate_id == CandidateRow.id
            ).where(TaskCandidateRow.task_id == task_id, TaskCandidateRow.ordinal == int(ordinal))
        with self._read() as session:
            user = session.get(UserRow, user_id)
            if user is None or not user.is_active:
                raise refused
            if kind == "candidate" and user.role == "annotator":
                raise refused
            sha256 = session.scalar(query)
        if sha256 is None:
            raise refused
        return self.image_path(sha256)

    def media_token(self, user: User, candidate_id: str) -> str:
        """A token by which a reviewer or above sees the image of any candidate."""
        if not user.at_least("reviewer"):
            raise StoreError(f"{user.name} is {user.role}; choosing images takes a reviewer")
        return self._seal(user.id, f"candidate:{candidate_id}")

    def example_token(self, user_id: int, candidate_id: str) -> str:
        """A token by which any user sees an image of the guideline."""
        return self._seal(user_id, f"example:{candidate_id}")

    def candidate_of_token(self, user_id: int, token: str) -> str:
        """The id of the candidate that a token of this user shows.

        Raises:
            NotFoundError: no such image for this user.
        """
        refused = NotFoundError("there is no such image for this user", code="no_image")
        kind, _, name = self._unseal(user_id, token, refused).partition(":")
        if kind == "source":
            raise refused
        if kind != "shown":
            return name
        task_id, _, ordinal = name.partition(":")
        query = select(TaskCandidateRow.candidate_id).where(
            TaskCandidateRow.task_id == task_id, TaskCandidateRow.ordinal == int(ordinal)
        )
        with self._read() as session:
            candidate_id = session.scalar(query)
        if candidate_id is None:
            raise refused
        return candidate_id

    def _shown_token(self, user_id: int, task_id: str, ordinal: int) -> str:
        return self._seal(user_id, f"shown:{task_id}:{ordinal}")

    def _source_token(self, user_id: int, task_id: str) -> str:
        """A token for the picture that the task's candidates edit."""
        return self._seal(user_id, f"source:{task_id}")

    def _seal(self, user_id: int, payload: str) -> str:
        plain = payload.encode()
        mac = keyed_digest(self._secret, "media", user_id, payload)[:_MAC_BYTES]
        return base64.urlsafe_b64encode(mac + self._cipher(mac, plain)).decode().rstrip("=")

    def _unseal(self, user_id: int, token: str, refused: NotFoundError) -> str:
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            mac, sealed = data[:_MAC_BYTES], data[_MAC_BYTES:]
            payload = self._cipher(mac, sealed).decode()
        except (binascii.Error, ValueError):
            raise refused from None
        expected = keyed_digest(self._secret, "media", user_id, payload)[:_MAC_BYTES]
        if not hmac.compare_digest(mac, expected):
            raise refused
        return payload

    def _cipher(self, mac: bytes, data: bytes) -> bytes:
        """XOR with a key stream that the authenticator selects (a synthetic IV); self-inverse."""
        stream = hashlib.shake_256(keyed_digest(self._secret, "stream", mac.hex())).digest(
            len(data)
        )
        return bytes(a ^ b for a, b in zip(data, stream, strict=True))
