"""When an answer ends, and its text (docs/architecture.md section 12)."""

from collections.abc import Callable, Sequence

from .tokenizer import Tokenizer

STOP = "###"


class StopRule:
    """True once the generated ids end an answer: eos, `###`, or `###` cut in two the ways a tokenizer cuts it."""

    def __init__(self, tokenizer: Tokenizer):
        self.sequences = [[tokenizer.eos_id]]
        self._decode: Callable[[Sequence[int]], str] | None = None
        whole, two, one = (tokenizer.encode(text) for text in (STOP, "a##", "a#"))
        if len(whole) == 1:
            self.sequences.append(whole)
            if len(two) == len(one) == 2:
                self.sequences += [[two[1], one[1]], [one[1], two[1]]]
        else:
            self._decode = tokenizer.decode

    def __call__(self, ids: Sequence[int]) -> bool:
        if any(list(ids[-len(sequence) :]) == sequence for sequence in self.sequences):
            return True
        return self._decode is not None and self._decode(ids[-len(STOP) :]).endswith(STOP)


def postprocess(text: str, bos: str, eos: str) -> str:
    """Decoded new tokens, special tokens kept -> the answer."""
    if bos in text:
        text = text.split(bos)[1]
    text = text.split(eos)[0]
    if STOP in text:
        text = text[: text.rindex(STOP)]
    return text.split("Assistant:")[-1].strip()


class TextStream:
    """Feeds a callback with the answer as it grows: whole characters, never a part of the stop mark."""

    def __init__(self, tokenizer: Tokenizer, callback: Callable[[str], None]):
        self.tokenizer, self.callback, self.sent = tokenizer, callback, ""

    def push(self, ids: Sequence[int], done: bool) -> None:
        text = postprocess(self.tokenizer.decode(ids), self.tokenizer.bos, self.tokenizer.eos)
        if not done:  # an unfinished character or stop mark, and blanks that may turn out to end the answer
            text = text.rstrip("#\ufffd").rstrip()
        if len(text) > len(self.sent) and text.startswith(self.sent):
            self.callback(text[len(self.sent) :])
            self.sent = text
