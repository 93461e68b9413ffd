"""What one clip is turned into (docs/architecture.md section 13)."""

FRAMES = 8
FRAME_SIZE = 224  # squashed, the aspect ratio is not kept
WINDOWS = 8
SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 2 * SAMPLE_RATE
