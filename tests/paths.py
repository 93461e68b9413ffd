"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # full fixtures, where a checkout has them beside it
SAMPLE = ROOT / "nanoemox" / "demo" / "sample.mp4"
