"""A process that does runs: it reads orders, a line of JSON each, and answers with outcomes.

It saves the run in hand and ends on SIGTERM, and ends at once when its input does: then the command
is gone, and the run resumes from its last checkpoint.
"""

import json
import os
import queue
import sys
import threading

from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.messages import Order
from deconfound.runtime import stop


def main(worker: int) -> None:
    """Serve as the process of this number until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    orders: queue.Queue[Order] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(Order(*json.loads(line)))
        os._exit(1)

    runner = Runner(worker)
    threading.Thread(target=read, daemon=True).start()
    try:
        with stop.at_once():
            while True:
                answers.write(json.dumps(runner.run(orders.get())) + "\n")
                answers.flush()
    except KeyboardInterrupt:
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
