#!/usr/bin/env python3
"""Pre-tokenised rows of random ids, for measuring: no model, no tokenizer.

  make_ids.py sft ROWS LENGTH [VOCAB]            every row has LENGTH ids, all but the first trained
  make_ids.py kto ROWS LENGTH [VOCAB]            prompt and completion of LENGTH / 2 each
  make_ids.py kto-lognormal ROWS MEAN [VOCAB]    prompt and completion lengths lognormal, mean MEAN each, sigma 0.6
"""
import json
import math
import random
import sys


def main():
    kind, rows, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    vocab = int(sys.argv[4]) if len(sys.argv) > 4 else 30000
    rng = random.Random(7)
    ids = lambda n: [rng.randrange(10, vocab) for _ in range(n)]
    sigma = 0.6
    lognormal = lambda: max(8, min(2048, round(rng.lognormvariate(math.log(length) - sigma * sigma / 2, sigma))))
    for i in range(rows):
        if kind == "sft":
            row = {"ids": ids(length), "trained": [[1, length]]}
        elif kind == "kto":
            row = {"prompt_ids": ids(length // 2), "completion_ids": ids(length - length // 2), "label": i % 2 == 0}
        else:
            row = {"prompt_ids": ids(lognormal()), "completion_ids": ids(lognormal()), "label": i % 2 == 0}
        print(json.dumps(row, separators=(",", ":")))


main()
