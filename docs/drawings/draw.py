"""`python docs/drawings/draw.py [FOLDER]`: writes the SVG drawings of docs/architecture.md, here by default.

Needs nothing but Python. tests/test_docs.py checks that the committed drawings are what this script writes.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
FILL = {
    "data": "#eef3f8",  # tensors, files, values
    "part": "#dbe9d8",  # parts with weights, folders of the model
    "kernel": "#f6e3cf",  # nanoemox_kernels and csrc
    "proof": "#f3dfe6",  # tests, gates, checks
    "plain": "#ffffff",
}
Point = tuple[float, float]


class Drawing:
    """Boxes and arrows on a white page; coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.shapes: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, lines: list[str], kind: str = "part") -> None:
        """A rectangle with centred lines of text; the first is bold."""
        self.shapes.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="5" fill="{FILL[kind]}" stroke="#445"/>'
        )
        top = y + h / 2 - 8 * (len(lines) - 1)
        for number, line in enumerate(lines):
            weight = "bold" if number == 0 else "normal"
            self.text(x + w / 2, top + 16 * number + 4, line, weight=weight)

    def text(
        self, x: float, y: float, line: str, *, anchor: str = "middle", weight: str = "normal", size: int = 12
    ) -> None:
        self.shapes.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}">'
            f"{escape(line)}</text>"
        )

    def arrow(self, *points: Point, label: str = "", at: Point | None = None) -> None:
        """A line through the points with a head at the last; the label stands at `at`."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.shapes.append(f'<polyline points="{path}" fill="none" stroke="#445" marker-end="url(#head)"/>')
        if label and at is not None:
            self.text(*at, label, size=11)

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="DejaVu Sans, Verdana, Arial, sans-serif">'
        )
        marker = (
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="#445"/></marker></defs>'
        )
        page = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return "\n".join([head, marker, page, *self.shapes, "</svg>"]) + "\n"


def model() -> Drawing:
    """Data flow of the model (docs/architecture.md section 1)."""
    d = Drawing(1180, 500)
    rows = {"face": 20, "vision": 115, "fusion": 210, "audio": 305, "text": 410}
    high = 62
    d.box(
        15,
        rows["face"],
        150,
        rows["vision"] + high - rows["face"],
        ["8 frames", "[B,8,3,224,224]", "uint8"],
        "data",
    )
    d.box(15, rows["audio"], 150, high, ["8 windows of 2 s", "[B,8,32000], 16 kHz"], "data")
    d.box(15, rows["text"], 150, high, ["words, question", "text"], "data")

    d.box(215, rows["face"], 190, high, ["FaceXFormer encoder", "Swin-B, pyramid head"])
    d.box(215, rows["vision"], 190, high, ["CLIP ViT-L/14", "layers 12, 16, 22; 23"])
    d.box(215, rows["audio"], 190, high, ["HuBERT-Large", "layers 16, 18, 22; 21 to 24"])
    d.box(215, rows["text"], 190, high, ["prompt template", "tokenizer"])

    d.box(520, rows["face"], 200, high, ["FaceHead", "4 queries attend over time"])
    d.box(520, rows["vision"], 200, high, ["video branch", "positions, Q-Former, Linear"])
    d.box(520, rows["fusion"], 200, high, ["MultiscaleFusion", "3 experts, softmax gate"])
    d.box(520, rows["audio"], 200, high, ["audio branch", "positions, Q-Former, Linear"])

    tokens = {"face": "4", "vision": "32", "fusion": "1", "audio": "32"}
    names = {"face": "<FaceHere>", "vision": "<FrameHere>", "fusion": "<MultiHere>", "audio": "<AudioHere>"}
    for row, count in tokens.items():
        y = rows[row] + high / 2
        plural = "token" if count == "1" else "tokens"
        d.box(780, rows[row], 140, high, [f"{count} {plural}", names[row], f"[B,{count},1536]"], "data")
        d.arrow((720, y), (780, y))
        d.arrow((920, y), (985, y))
    d.box(
        985,
        20,
        180,
        452,
        [
            "Qwen2.5-1.5B-Instruct",
            "with LoRA",
            "",
            "reads the prompt with",
            "every placeholder",
            "replaced by its token,",
            "writes the answer",
        ],
    )
    for row in ("face", "vision", "audio", "text"):
        y = rows[row] + high / 2
        d.arrow((165, y), (215, y))
    middle = {row: y + high / 2 for row, y in rows.items()}
    d.arrow((405, middle["face"]), (520, middle["face"]), label="[B,8,256]", at=(460, middle["face"] - 6))
    d.arrow(
        (405, middle["vision"]), (520, middle["vision"]), label="[B,8,1024]", at=(460, middle["vision"] - 6)
    )
    d.arrow((405, middle["audio"]), (520, middle["audio"]), label="[B,8,1024]", at=(460, middle["audio"] - 6))
    d.arrow(
        (405, middle["text"]),
        (985, middle["text"]),
        label="token ids, embedded",
        at=(690, middle["text"] - 6),
    )
    d.arrow((310, rows["vision"] + high), (310, 230), (520, 230), label="3 taps, [B,8,3072]", at=(415, 224))
    d.arrow((310, rows["audio"]), (310, 254), (520, 254), label="3 taps, [B,8,3072]", at=(415, 270))
    return d


FOLDERS = [  # imports lead downwards, within a row from left to right
    [("tests, benchmarks", "import anything")],
    [("cli", "parser, exit codes"), ("commands", "one file a command")],
    [("demo, demo.make", "the embedded bundle")],
    [("train", "curriculum trainer")],
    [("data", "samples; formats, synthetic corpus")],
    [("weights", "makes bundles"), ("loading", "load, load_language")],
    [("fast", "accelerated parts"), ("fast.decode", "CPU language model"), ("fast.layers", "shared layers")],
    [("build", "empty model"), ("model", "NanoEmoX, plain flow")],
    [("generation", "tokens to text")],
    [("modules", "reference parts"), ("bundle", "files on disk"), ("media", "file to Clip")],
    [("prompts, tasks", "words in and out"), ("devices", "names"), ("config, errors", "sizes, messages")],
]


def folders() -> Drawing:
    """Which folder imports which (docs/architecture.md section 20)."""
    d = Drawing(980, 700)
    top, high, gap = 20, 44, 16
    left, wide = 20, 640
    for number, row in enumerate(FOLDERS):
        y = top + number * (high + gap)
        width = (wide - 14 * (len(row) - 1)) / len(row)
        for place, (name, what) in enumerate(row):
            kind = "proof" if number == 0 else "part"
            d.box(left + place * (width + 14), y, width, high, [name, what], kind)
        if number:
            d.arrow((left + wide / 2, y - gap), (left + wide / 2, y))
    bottom = top + len(FOLDERS) * (high + gap) - gap
    x = left + wide + 90
    d.box(
        x, 200, 210, 92, ["nanoemox_kernels", "ops, linear, decode,", "shapes, aot", "public names"], "kernel"
    )
    d.box(x, 350, 170, 60, ["csrc", "C++, through _native.py"], "kernel")
    d.box(x, 468, 210, 60, ["torch, triton", "Triton in kernels and aot alone"], "plain")
    d.arrow((x + 85, 292), (x + 85, 350))
    d.arrow((x + 190, 292), (x + 190, 468))
    for number in (0, 6, 9):
        y = top + number * (high + gap) + high / 2
        d.arrow((left + wide, y), (x - 45, y), (x - 45, 246), (x, 246))
    d.text(x + 105, bottom - 24, "Imports lead downwards,", size=11)
    d.text(x + 105, bottom - 8, "within a row from left to right.", size=11)
    return d


def answer() -> Drawing:
    """From a clip to an answer (docs/architecture.md section 21)."""
    d = Drawing(1060, 720)
    d.box(20, 20, 330, 58, ["1  read_clip", "media/read.py: checks, starts a child"])
    d.box(440, 20, 330, 58, ["child process", "media/child.py: survey, pictures, sound"], "part")
    d.arrow((350, 38), (440, 38), label="JSON", at=(395, 32))
    d.arrow((440, 62), (350, 62), label="arrays", at=(395, 76))
    d.box(850, 20, 190, 58, ["Clip", "frames, audio, subtitle"], "data")
    d.arrow((185, 78), (185, 98), (910, 98), (910, 78))
    d.box(20, 130, 330, 58, ["2  answer, answer_all", "model.py: checks options, a TaskRequest per task"])
    d.arrow((980, 78), (980, 159), (350, 159))
    d.box(20, 230, 330, 58, ["3  encode", "stacks the clips, calls encode_streams"])
    d.arrow((185, 188), (185, 230))
    d.box(
        440,
        190,
        600,
        58,
        ["CPU: vision, face, audio one after the other", "C++ kernels, oneDNN products, threads inside"],
        "kernel",
    )
    d.box(
        440,
        270,
        600,
        58,
        [
            "GPU: one CUDA graph, three branches beside each other",
            "Triton kernels, cuBLASLt on a share of the multiprocessors",
        ],
        "kernel",
    )
    d.arrow((350, 250), (395, 250), (395, 219), (440, 219))
    d.arrow((350, 268), (395, 268), (395, 299), (440, 299))
    d.box(20, 350, 330, 58, ["Encoded", "32 + 32 + 4 + 1 tokens, gates, attention"], "data")
    d.arrow((185, 288), (185, 350))
    d.box(
        440, 350, 600, 58, ["4  prompt_ids", "prompts.py: modality_set, build, tokenize; tasks.py: Task.ask"]
    )
    d.box(20, 450, 330, 58, ["5  splice", "placeholders become the streams' tokens"])
    d.arrow((185, 408), (185, 450))
    d.arrow((740, 408), (740, 479), (350, 479), label="token ids", at=(560, 473))
    d.box(20, 550, 330, 58, ["6  generate", "generation/: Sampler, StopRule, TextStream"])
    d.arrow((185, 508), (185, 550))
    d.box(
        440,
        510,
        600,
        58,
        ["CPU: EngineLanguage", "prefill through PyTorch, then one C call a token for all layers"],
        "kernel",
    )
    d.box(
        440,
        590,
        600,
        58,
        ["GPU: LanguageModel", "Hugging Face's model with merged adapters, DynamicCache"],
        "part",
    )
    d.arrow((350, 570), (395, 570), (395, 539), (440, 539))
    d.arrow((350, 588), (395, 588), (395, 619), (440, 619))
    d.box(20, 650, 330, 50, ["7  Reply", "postprocess, Task.parse"], "data")
    d.arrow((185, 608), (185, 650))
    return d


def fast_part() -> Drawing:
    """How a fast part is built and how it proves itself (docs/architecture.md section 22)."""
    d = Drawing(1080, 520)
    d.text(260, 24, "built", weight="bold", size=14)
    d.text(800, 24, "proved", weight="bold", size=14)
    d.box(20, 40, 230, 60, ["definition of the op", "ops/<op>/reference.py"], "data")
    d.box(20, 150, 230, 60, ["op", "ops/<op>/op.py: schema, checks"], "kernel")
    d.box(20, 270, 110, 60, ["Triton", "kernel.py"], "kernel")
    d.box(140, 270, 110, 60, ["C++", "csrc/cpu"], "kernel")
    d.box(300, 40, 220, 60, ["reference part", "modules/<part>.py"], "data")
    d.box(300, 150, 220, 60, ["official tensors", "TensorStore.take, one by one"], "data")
    d.box(300, 270, 220, 60, ["fast part", "fast/<part>.py: fold, pack"])
    d.box(20, 400, 500, 60, ["FastNanoEmoX", "encode_streams: CUDA graph on a GPU; decode engine on a CPU"])
    d.arrow((135, 100), (135, 150))
    d.arrow((75, 210), (75, 270))
    d.arrow((195, 210), (195, 270))
    d.arrow((410, 100), (410, 150))
    d.arrow((410, 210), (410, 270))
    d.arrow((250, 180), (275, 180), (275, 290), (300, 290))
    d.arrow((410, 330), (410, 400))

    d.box(
        600,
        40,
        460,
        60,
        ["parity", "definition and modules against the official ones: tests/test_parity.py"],
        "proof",
    )
    d.box(
        600,
        120,
        460,
        60,
        ["error rule", "twice PyTorch's own error and one ulp: tests/ops/test_<op>.py"],
        "proof",
    )
    d.box(
        600, 200, 460, 60, ["interpreter, instruction sets, sanitizers", "no GPU needed: tests/ops"], "proof"
    )
    d.box(
        600,
        280,
        460,
        60,
        ["ahead-of-time gate", "spills, registers, wide loads on 3 targets: test_aot.py"],
        "proof",
    )
    d.box(
        600,
        360,
        460,
        60,
        ["fast against reference", "features, tokens of answers, memory: tests/test_fast.py"],
        "proof",
    )
    d.box(
        600,
        440,
        460,
        60,
        ["GPU check", "all of it on the card, then timings: benchmarks/gpu_check.py"],
        "proof",
    )
    return d


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "model": model,
    "folders": folders,
    "answer": answer,
    "fast_part": fast_part,
}


def main(folder: Path) -> None:
    for name, draw in DRAWINGS.items():
        (folder / f"{name}.svg").write_text(draw().svg())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
