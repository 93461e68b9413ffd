"""When an answer ends, and its text without the stop mark (docs/architecture.md section 12)."""

from collections.abc import Callable, Sequence

from .tokenizer import Tokenizer

STOP = "###"


class StopRule:
    """Whether generated ids end an answer: with eos, or with `###`, also where a tokenizer cuts it in two."""

    def __init__(self, tokenizer: Tokenizer):
        self.sequences = [[tokenizer.eos_id]]
        self._decode: Callable[[Sequence[int]], str] | None = None
        mark, two_signs, one_sign = (tokenizer.encode(text) for text in (STOP, "a##", "a#"))
        if len(mark) == 1:
            self.sequences.append(mark)
            if len(two_signs) == len(one_sign) == 2:
                self.sequences += [[two_signs[1], one_sign[1]], [one_sign[1], two_signs[1]]]
        else:
            self._decode = tokenizer.decode

    def __call__(self, ids: Sequence[int]) -> bool:
        if any(list(ids[-len(sequence) :]) == sequence for sequence in self.sequences):
            return True
        return self._decode is not None and self._decode(ids[-len(STOP) :]).endswith(STOP)


def postprocess(text: str, bos: str, eos: str) -> str:
    """The answer in the text of the generated tokens, which still holds special tokens and the stop mark."""
    if bos in text:
        text = text.split(bos)[1]
    text = text.split(eos)[0]
    if STOP in text:
        text = text[: text.rindex(STOP)]
    return text.split("Assistant:")[-1].strip()


class TextStream:
    """Passes the answer to a callback as it grows: whole characters, never a part of the stop mark."""

    def __init__(self, tokenizer: Tokenizer, callback: Callable[[str], None]):
        self.tokenizer, self.callback, self.sent = tokenizer, callback, ""

    def push(self, ids: Sequence[int], done: bool) -> None:
        """Takes the ids so far, and whether they are complete."""
        text = postprocess(self.tokenizer.decode(ids), self.tokenizer.bos, self.tokenizer.eos)
        if not done:  # an incomplete character or stop mark, and spaces, which may be the end of the answer
            text = text.rstrip("#\ufffd").rstrip()
        if len(text) > len(self.sent) and text.startswith(self.sent):
            self.callback(text[len(self.sent) :])
            self.sent = text
