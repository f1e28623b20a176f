"""Tokens that are signed here: one scope as text is one scope, and a life has an end."""

from __future__ import annotations

from typing import Any

import pytest
from client_stage import KEY, Stage

from everturn import auth
from everturn.errors import InvalidRequest
from everturn.protocol import tokens

pytestmark = pytest.mark.anyio


async def test_one_scope_as_text_is_one_scope_and_not_its_letters(stage: Stage) -> None:
    token = await auth.create_public_token("read:sessions:a", api=stage.api)
    claims = tokens.verify(token, KEY, now_ms=stage.api.clock.now_ms())
    assert claims.scopes == ("read:sessions:a",)


@pytest.mark.parametrize("expires", [float("nan"), float("inf"), 1e300, -5, 0, True])
async def test_a_life_that_is_no_time_is_refused(stage: Stage, expires: Any) -> None:
    with pytest.raises(InvalidRequest):
        await auth.create_public_token(["read:all"], expires=expires, api=stage.api)
