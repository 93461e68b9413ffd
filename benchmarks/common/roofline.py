"""FLOP of the encoders, and the least time that they take, from their sizes."""


def _layers(T: int, d: int, L: int) -> int:
    return L * (24 * d * d * T + 4 * T * T * d)


def clip(B: int, n: int = 8, T: int = 257, d: int = 1024) -> int:
    """FLOP of CLIP ViT-L/14 on B clips of n frames, up to the last layer that is read."""
    return B * n * (_layers(T, d, 22) + 4 * d * d * T + 20 * d * d + 4 * T * d + 2 * 256 * 588 * d)


def hubert(B: int, n: int = 8, samples: int = 32000) -> int:
    """FLOP of HuBERT-Large on B clips of n windows."""
    flop, channels, t = 0, 1, samples
    for k, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        t = (t - k) // stride + 1
        flop += 2 * t * 512 * channels * k
        channels = 512
    return B * n * (flop + 2 * t * 512 * 1024 + 2 * t * 1024 * 64 * 128 + _layers(t, 1024, 24))


def swin(B: int, n: int = 8) -> int:
    """FLOP of Swin-B on B clips of n face crops of 224x224, with the folded pyramid head."""
    flop, C, t = 2 * 3136 * 48 * 128, 128, 3136
    for stage, depth in enumerate((2, 2, 18, 2)):
        flop += depth * (24 * C * C * t + 4 * 49 * C * t)
        if stage < 3:
            flop += 2 * (t // 4) * 4 * C * 2 * C
            C, t = 2 * C, t // 4
    return B * n * flop


def floor(flop: float, moved: float, ceilings: dict[str, float]) -> float:
    """Least seconds for `flop` and `moved` bytes at the measured ceilings, "matmul" and "bandwidth"."""
    return max(flop / ceilings["matmul"], moved / ceilings["bandwidth"])
