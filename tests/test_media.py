"""read_clip against a plain sequential decode, for many codecs, containers and rates."""

import re
import struct
from dataclasses import asdict

import numpy as np
import pytest
from clips import sequential, tone, write_video, write_wav
from paths import SAMPLE, SHARED

import nanoemox
from nanoemox.errors import MediaError, UsageError
from nanoemox.media import Limits
from nanoemox.media.positions import frame_indices, window_starts
from nanoemox.media.source import Source
from nanoemox.media.survey import survey


def check_frames(path, clip, start=0.0, end=float("inf")):
    frames = [(time, image) for time, image in sequential(path) if start <= time < end]
    expected = [frames[i] for i in frame_indices(len(frames))]
    assert clip.frame_times == pytest.approx([time for time, _ in expected], abs=1e-6)
    for got, (_, image) in zip(clip.frames, expected, strict=True):
        assert np.abs(got.astype(int) - image).mean() <= 2


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 25])
def test_frames_of_any_count(frames, tmp_path):
    path = write_video(tmp_path / "x.mp4", frames)
    clip = nanoemox.read_clip(path)
    assert clip.frames.shape == (8, 3, 224, 224) and clip.frames.dtype == np.uint8 and clip.audio is None
    check_frames(path, clip)
    assert clip.modalities == {"used": ["frames", "face"], "absent": ["audio", "subtitle"]}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b_frames.mp4", {"codec": "libx264", "bf": 3, "g": 30}),
        (
            "open_gop.mkv",
            {"codec": "libx264", "bf": 3, "x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0"},
        ),
        ("long_gop.mkv", {"codec": "mpeg4", "g": 600}),
        ("x.avi", {"codec": "mpeg4", "bf": 2}),
        ("x.ts", {"codec": "mpeg2video", "bf": 2, "g": 12}),
        ("x.mpg", {"codec": "mpeg1video", "g": 12, "rate": 25}),
        (
            "x.webm",
            {"codec": "libvpx", "auto-alt-ref": 1, "lag-in-frames": 10, "deadline": "realtime", "b": 200000},
        ),
        ("x.flv", {"codec": "flv"}),
        ("x.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("x.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("ten_bit.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p10le"}),
        ("odd.mkv", {"codec": "ffv1", "size": (37, 3), "pix_fmt": "yuv444p"}),
        ("dot.mkv", {"codec": "ffv1", "size": (1, 1), "pix_fmt": "gray"}),
        ("alpha.mkv", {"codec": "ffv1", "pix_fmt": "yuva420p"}),
        (
            "uneven.mkv",
            {"codec": "mpeg4", "pts": [round(1000 * (0.04 * i + 0.002 * i * i)) for i in range(40)]},
        ),
    ],
)
def test_frames_of_any_codec(name, options, tmp_path):
    path = write_video(tmp_path / name, 40, **options)
    check_frames(path, nanoemox.read_clip(path))


def test_a_part_of_a_clip(tmp_path):
    path = write_video(tmp_path / "x.mp4", 50, codec="libx264", bf=2, g=12, sound=(16000, "mono", 5))
    for start, end in ((1.0, 2.0), (0.35, 4.05), (None, 0.5), (4.9, None)):
        clip = nanoemox.read_clip(path, start=start, end=end)
        low, high = start or 0.0, 99.0 if end is None else end
        check_frames(path, clip, low, high)
        assert all(low <= t < high for t in clip.frame_times)
        assert clip.duration == pytest.approx(min(high, 5.0) - low, abs=0.15)
    with pytest.raises(MediaError, match="between 60 s and 61 s"):
        nanoemox.read_clip(path, start=60, end=61)
    for start, end in ((2, 1), (1, 1), (None, 0), (-1, None), (float("nan"), None)):
        with pytest.raises(UsageError, match="start"):
            nanoemox.read_clip(path, start=start, end=end)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), np.fliplr),
    ],
)
def test_display_matrix(matrix, turn, tmp_path):
    plain = write_video(tmp_path / "plain.mp4", 8, size=(96, 64))
    data = bytearray(plain.read_bytes())
    # Version and flags, then times, id, duration, layer: the matrix is at byte 40 of the box.
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (v << 16 for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    expected = turn(nanoemox.read_clip(plain).frames[3].transpose(1, 2, 0))
    got = nanoemox.read_clip(turned).frames[3].transpose(1, 2, 0)
    assert np.abs(got.astype(int) - expected).mean() <= 2


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 44101, 48000, 96000])
def test_a_tone_survives_any_rate(rate, tmp_path):
    seconds = 5.37
    wave = tone(int(seconds * rate), rate)
    path = write_wav(tmp_path / "x.wav", (wave * 32767).astype(np.int16)[None], rate)
    clip = nanoemox.read_clip(path)
    assert clip.frames is None and clip.audio.shape == (8, 32000) and clip.audio.dtype == np.float32
    total = -(-len(wave) * 16000 // rate)
    assert clip.window_starts == window_starts(total)
    ideal = tone(total + 32000, 16000)
    for row, start in zip(clip.audio, clip.window_starts, strict=True):
        expected = ideal[start : start + 32000]
        assert np.abs(row - (expected - expected.mean()))[50:-50].max() < 2e-3
        assert abs(row.mean()) < 1e-6


@pytest.mark.parametrize(
    ("codec", "format", "dtype", "scale"),
    [
        ("pcm_u8", "u8p", np.uint8, 127),
        ("pcm_s16le", "s16p", np.int16, 2**15 - 1),
        ("pcm_s32le", "s32p", np.int32, 2**31 - 256),
        ("pcm_f32le", "fltp", np.float32, 1),
        ("pcm_f64le", "dblp", np.float64, 1),
    ],
)
def test_channels_are_averaged_in_any_sample_type(codec, format, dtype, scale, tmp_path):
    mix = np.stack([tone(40000, 16000, hertz) for hertz in (150, 250, 350, 450, 550, 650)])
    samples = mix * scale + (128 if dtype == np.uint8 else 0)
    path = write_wav(
        tmp_path / "x.wav", samples.astype(dtype), 16000, layout="5.1", codec=codec, format=format
    )
    clip = nanoemox.read_clip(path)
    expected = mix.mean(0)[:32000]
    assert np.abs(clip.audio[0] - (expected - expected.mean())).max() < (0.01 if dtype == np.uint8 else 1e-4)


def test_a_part_of_the_sound_is_exact_to_the_sample(tmp_path):
    path = write_video(tmp_path / "x.mp4", 50, codec="libx264", rate=25, sound=(48000, "mono", 2.0))
    for step in range(1, 20):
        start, end = step / 25, (step + 30) / 25
        source = Source(str(path), start, end, asdict(Limits()))
        assert survey(source).samples == 30 * 1920, (start, end)


def test_a_clock_that_restarts(tmp_path):
    path = write_video(tmp_path / "x.ts", 50, codec="libx264", rate=25, bf=2)
    (tmp_path / "twice.ts").write_bytes(path.read_bytes() * 2)
    clip = nanoemox.read_clip(tmp_path / "twice.ts")
    assert "clock restarts" in clip.notes[0] and clip.duration == pytest.approx(4.0, abs=0.2)
    assert clip.frame_times == sorted(clip.frame_times)
    with pytest.raises(MediaError, match="clock restarts"):
        nanoemox.read_clip(tmp_path / "twice.ts", start=1, end=2)


def test_short_and_long_sound(tmp_path):
    short = nanoemox.read_clip(write_wav(tmp_path / "s.wav", np.full((1, 100), 8000, np.int16), 16000))
    assert (
        short.window_starts == [0] * 8
        and (short.audio == short.audio[0]).all()
        and not short.audio[0, 101:].std()
    )
    video = write_video(tmp_path / "x.mp4", 30, sound=(44100, "stereo", 3.0))
    clip = nanoemox.read_clip(video)
    assert clip.audio is not None and clip.modalities["absent"] == ["subtitle"]
    assert clip.duration == pytest.approx(3.0, abs=0.1)


def test_files_that_begin_late_or_early(tmp_path):
    """The first frame is taken at any clock; a part is counted from where the file begins."""
    for name, codec, first in (
        ("late.mkv", "mpeg4", 10_000),
        ("odd.ts", "libx264", 1_466),
        ("early.mkv", "mpeg4", -700),
        ("primed.mkv", "mpeg4", -40),
    ):
        pts = [first + 40 * i for i in range(30)]
        path = write_video(tmp_path / name, 30, codec=codec, pts=pts, rate=25)
        clip = nanoemox.read_clip(path)
        check_frames(path, clip, -99.0)
        part = nanoemox.read_clip(path, start=0.4, end=0.8)
        check_frames(path, part, 0.4, 0.8)


def test_seeking_never_shows_half_a_picture(tmp_path):
    """Recovery points, transport streams without an index, and a start right on a key frame."""
    for name, options in (
        ("refresh.mkv", {"codec": "libx264", "x264-params": "intra-refresh=1:keyint=40"}),
        ("b.ts", {"codec": "mpeg4", "bf": 2, "g": 12}),
        ("h264.ts", {"codec": "libx264", "bf": 2, "g": 12}),
    ):
        path = write_video(tmp_path / name, 240, rate=25, **options)
        check_frames(path, nanoemox.read_clip(path))
        check_frames(path, nanoemox.read_clip(path, start=4.8, end=7.2), 4.8, 7.2)


def test_video_without_times_is_cut_by_its_pace(tmp_path):
    path = write_video(tmp_path / "x.h264", 50, codec="libx264", rate=25, bf=0)
    clip, part = nanoemox.read_clip(path), nanoemox.read_clip(path, start=1.0, end=1.4)
    images = [image for _, image in sequential(path)]
    assert len(images) == 50 and clip.duration == pytest.approx(2.0, abs=0.05)
    for got, i in zip(part.frames, [25 + k * 10 // 8 for k in range(8)], strict=True):
        assert np.abs(got.astype(int) - images[i]).mean() <= 2
    assert part.frame_times[0] == pytest.approx(1.0)


def test_a_picture_with_exif(tmp_path):
    plain = write_video(tmp_path / "x.jpg", 1, codec="mjpeg", pix_fmt="yuvj420p", f="image2").read_bytes()
    expected = nanoemox.read_clip(tmp_path / "x.jpg").frames
    assert (expected == expected[0]).all()
    upright = {1: lambda i: i, 2: np.fliplr, 3: lambda i: np.rot90(i, 2), 5: lambda i: i.transpose(1, 0, 2)}
    for orientation, turn in upright.items():
        tag = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
        app1 = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag + b"\0\0\0\0"
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + plain[2:]
        (tmp_path / "exif.jpg").write_bytes(data)
        got = nanoemox.read_clip(tmp_path / "exif.jpg").frames[0].transpose(1, 2, 0)
        assert np.abs(got.astype(int) - turn(expected[0].transpose(1, 2, 0))).mean() <= 2, orientation


def test_a_stream_that_cannot_be_decoded_counts_as_absent(tmp_path):
    whole = write_video(tmp_path / "x.mkv", 20, sound=(16000, "mono", 2)).read_bytes()
    for old, new, absent in (
        (b"A_AAC", b"A_ZZZ", "audio"),
        (b"V_MPEG4/ISO/ASP", b"V_ZZZZ4/ISO/ASP", "frames"),
    ):
        assert old in whole
        (tmp_path / "y.mkv").write_bytes(whole.replace(old, new))
        clip = nanoemox.read_clip(tmp_path / "y.mkv")
        assert absent in clip.modalities["absent"] and "cannot be decoded" in clip.notes[0]


def test_cover_art_is_not_a_picture(tmp_path):
    import av

    path = tmp_path / "x.mka"
    write_wav(path, (tone(48000, 16000) * 32767).astype(np.int16)[None], 16000)
    assert nanoemox.read_clip(path).frames is None
    cover = tmp_path / "cover.mp4"
    with av.open(str(cover), "w") as out, av.open(str(path)) as source:
        audio = out.add_stream("aac", rate=16000, layout="mono")
        art = out.add_stream("mjpeg")
        art.width, art.height, art.pix_fmt = 32, 32, "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, np.uint8), format="rgb24")
        out.mux(art.encode(picture))
        out.mux(art.encode())
        for frame in source.decode(audio=0):
            frame.pts = None
            out.mux(audio.encode(frame))
        out.mux(audio.encode())
    clip = nanoemox.read_clip(cover)
    assert clip.frames is None and clip.audio is not None


SRT = """1
00:00:00,500 --> 00:00:01,500
<i>Hello</i> {\\an8}there,

2
00:00:02,000 --> 00:00:03,000
old
friend. 3 < 4 &amp; 5 > 2
"""
VTT = """WEBVTT

NOTE not a cue

00:00.500 --> 00:01.500 align:start
Hello there,

00:00:02.000 --> 00:00:03.000
<v Ann>old friend. 3 &lt; 4 &amp; 5 > 2
"""


@pytest.mark.parametrize(
    ("name", "text"), [("x.srt", SRT), ("x.VTT", VTT), ("bom.srt", "\ufeff" + SRT.replace("\n", "\r\n"))]
)
def test_subtitle_files(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert nanoemox.read_clip(SAMPLE, subtitle=path).subtitle == "Hello there, old friend. 3 < 4 & 5 > 2"
    assert nanoemox.read_clip(SAMPLE, subtitle=str(path), start=0, end=2).subtitle == "Hello there,"
    assert nanoemox.read_clip(SAMPLE, subtitle=path, start=1.7).subtitle == "old friend. 3 < 4 & 5 > 2"
    assert nanoemox.read_clip(SAMPLE, subtitle=path, start=1.6, end=1.9).subtitle is None


def test_subtitle_text_and_wrong_subtitle_files(tmp_path):
    assert nanoemox.read_clip(SAMPLE, subtitle="No file: just words.").subtitle == "No file: just words."
    assert nanoemox.read_clip(SAMPLE, subtitle="").subtitle is None
    for name, data, match in (
        ("none.srt", None, "no such file"),
        ("empty.srt", b"", "empty"),
        ("garbage.srt", b"nothing here is a cue\n" * 9, "no subtitle in it"),
        ("garbage.vtt", bytes(range(256)) * 9, "no subtitle in it"),
        ("latin.srt", SRT.replace("old", "\xe9t\xe9").encode("latin-1"), "UTF-8"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(MediaError, match=f"{name}.*{match}|{match}.*{name}"):
            nanoemox.read_clip(SAMPLE, subtitle=path)


@pytest.mark.skipif(not (SHARED / "media").is_dir(), reason="the sample media are not here")
def test_real_clips():
    for name, frames in (("talking_face.mp4", 120), ("cartoon.mp4", 132)):
        path = SHARED / "media" / name
        clip = nanoemox.read_clip(path, subtitle=SHARED / "media" / "talking_face.srt")
        check_frames(path, clip)
        assert len(sequential(path)) == frames
        assert re.match(r"\w+", clip.subtitle) and clip.notes == []
