"""A process that does runs: it reads orders, a line of JSON each, and answers with outcomes.

It saves the run in hand and ends on SIGTERM, and ends at once when its input does: then the command
is gone, and the run resumes from its last checkpoint.
"""

import json
import os
import queue
import sys
import threading
from typing import TextIO

from deconfound.experiments.running.messages import Order
from deconfound.runtime import limits, quiet, stop, streams


def main(worker: int) -> None:
    """Serve as the process of this number until the input ends."""
    streams.prepare()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        with stop.at_once(), quiet.own_lines(streams.complain):
            _serve(worker, answers)
    except KeyboardInterrupt:
        os._exit(0)
    except Exception as error:
        if quiet.debugging() or (line := limits.refused(error)) is None:
            raise
        streams.complain(line)
        os._exit(1)


def _serve(worker: int, answers: TextIO) -> None:
    from deconfound.experiments.running.job import Runner  # which may find no memory

    orders: queue.Queue[Order] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(Order(*json.loads(line)))
        os._exit(1)

    runner = Runner(worker)
    threading.Thread(target=read, daemon=True).start()
    while True:
        answers.write(json.dumps(runner.run(orders.get())) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
