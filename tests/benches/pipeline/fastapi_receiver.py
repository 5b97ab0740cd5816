"""What one writes first: a receiver of Gitea's issue webhooks that answers and
then handles in memory. What `beside` compares Coordinator with.

Run as `python fastapi_receiver.py`; uvicorn itself reads WEB_CONCURRENCY, its
number of processes. HANDLER_SECONDS stands for the work of a real handler.
"""

import asyncio
import hashlib
import hmac
import logging
import os
from datetime import datetime
from typing import Annotated

import uvicorn
from fastapi import BackgroundTasks, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, ValidationError

SECRET = os.environ["GITEA_WEBHOOK_SECRET"].encode()
GITEA_URL = os.environ["GITEA_URL"]
LOG_LEVEL = os.environ.get("LOG_LEVEL", "info")
HANDLER_SECONDS = float(os.environ.get("HANDLER_SECONDS", "0"))

logging.basicConfig(level=LOG_LEVEL.upper(), format="%(asctime)s %(levelname)s %(message)s")
log = logging.getLogger("receiver")
app = FastAPI()


class User(BaseModel):
    id: int
    login: str


class Issue(BaseModel):
    id: int
    number: int
    title: str
    body: str = ""
    html_url: str
    state: str
    user: User
    assignees: list[User] | None = None
    created_at: datetime
    updated_at: datetime


class Repository(BaseModel):
    id: int
    full_name: str
    html_url: str


class Payload(BaseModel):
    action: str
    issue: Issue
    repository: Repository
    sender: User


async def assigned(delivery: str, payload: Payload) -> None:
    logins = [user.login for user in payload.issue.assignees or []]
    await handle("assigned", delivery, payload, f"to {', '.join(logins)}")


async def unassigned(delivery: str, payload: Payload) -> None:
    await handle("unassigned", delivery, payload, f"by {payload.sender.login}")


async def closed(delivery: str, payload: Payload) -> None:
    await handle("closed", delivery, payload, f"by {payload.sender.login}")


async def handle(what: str, delivery: str, payload: Payload, how: str) -> None:
    if HANDLER_SECONDS:
        await asyncio.sleep(HANDLER_SECONDS)
    issue = f"{GITEA_URL}/{payload.repository.full_name}/issues/{payload.issue.number}"
    log.info("handled %s: %s %s %s", delivery, issue, what, how)


HANDLERS = {"assigned": assigned, "unassigned": unassigned, "closed": closed}


@app.post("/webhook/gitea")
async def webhook(
    request: Request,
    background: BackgroundTasks,
    x_gitea_signature: Annotated[str, Header()] = "",
    x_gitea_delivery: Annotated[str, Header()] = "",
) -> dict[str, str]:
    body = await request.body()
    expected = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), x_gitea_signature.encode()):
        raise HTTPException(401, "invalid signature")
    try:
        payload = Payload.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, "invalid payload") from error
    handler = HANDLERS.get(payload.action)
    if handler is None:
        return {"status": "ignored"}
    background.add_task(handler, x_gitea_delivery, payload)
    return {"status": "accepted"}


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_receiver:app",
        host=os.environ.get("HOST", "0.0.0.0"),
        port=int(os.environ.get("PORT", "8000")),
        log_level=LOG_LEVEL,
        access_log=False,
    )
