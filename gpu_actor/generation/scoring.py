"""What the model thought of given tokens: log-probabilities of a prompt, and the likeliest tokens in each place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gpu_actor.generation.reply import Reply

_POSITIONS = 256  # whose logits are there at a time


def likeliest(logits: torch.Tensor, counts: Sequence[int]) -> list[list[tuple[int, float]]]:
    """The likeliest tokens of each row, with their log-probabilities, the likeliest first.

    Args:
        logits: [rows, vocabulary].
        counts: How many of each row; nothing is computed where all are 0.
    """
    most = min(max(counts, default=0), logits.shape[-1])
    if not most:
        return [[] for _ in counts]
    values, ids = logits.float().log_softmax(-1).topk(most)
    rows = zip(ids.tolist(), values.tolist(), counts, strict=True)
    return [list(zip(row, logs, strict=True))[:count] for row, logs, count in rows]


def score_prompt(reply: Reply, hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Note the tokens of a reply's prompt.

    Args:
        reply: That is asked for them.
        hidden: [n, hidden], of every token of the prompt.
        head: Hidden states [m, hidden] -> logits [m, vocabulary].
    """
    reply.noted_prompt = [reply.scored(int(reply.prompt[0]), None, ())]
    targets = torch.from_numpy(reply.prompt[1:]).long().to(hidden.device)
    for start in range(0, len(targets), _POSITIONS):
        wanted = targets[start : start + _POSITIONS]
        logits = head(hidden[start : start + len(wanted)]).float()
        values = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0].tolist()
        others = likeliest(logits, [reply.likeliest or 0] * len(wanted))
        for token, value, row in zip(wanted.tolist(), values, others, strict=True):
            reply.noted_prompt.append(reply.scored(token, value, row))
