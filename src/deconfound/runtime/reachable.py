"""Whether anything answers at an address of the network."""

import asyncio

ANSWER_SECONDS = 5.0
"""How long an address has to answer; libraries would try for minutes."""


def answers(host: str, port: int) -> bool:
    """Whether anything listens there."""
    return asyncio.run(_answers(host, port))


async def _answers(host: str, port: int) -> bool:
    try:
        opening = asyncio.open_connection(host, port)
        _, writer = await asyncio.wait_for(opening, ANSWER_SECONDS)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
