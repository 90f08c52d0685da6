"""A route of frames for an application that is there already: Starlette, and so FastAPI.

app = Starlette(routes=[Mount("/frames", frame_router(reader))])        # FastAPI: app.mount("/frames", ...)
"""

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from voxtier.errors import FormatError, NotFoundError
from voxtier.frames import FrameReader


def frame_router(reader: FrameReader) -> Router:
    """Return ``GET /{uid}/{number}``: the bytes of one frame (from 1) as the file holds them."""

    async def frame(request: Request) -> Response:
        uid, number = request.path_params["uid"], request.path_params["number"]
        try:
            if not re.fullmatch(r"[0-9.]{1,64}", uid) or number < 1:  # a path is no name for clients
                raise NotFoundError(f"{uid}: no SOP Instance UID, or no frame {number}")
            content = await reader.aframe(uid, number - 1)
        except (NotFoundError, IndexError) as error:
            return Response(str(error), 404, media_type="text/plain")
        except FormatError as error:  # the file is damaged: the client cannot help it
            return Response(str(error), 502, media_type="text/plain")
        return Response(content, media_type="application/octet-stream")

    return Router([Route("/{uid}/{number:int}", frame)])
