"""Damaged and hostile files: each is an error and has no other effect."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clips import write_video, write_wav
from paths import ROOT, SAMPLE

import nanoemox
from nanoemox.errors import MediaError
from nanoemox.media import Limits

CUES = b"1\n00:00:00,500 --> 00:00:01,500\nHello\n"


def test_bad_files(tmp_path):
    video = write_video(tmp_path / "ok.mp4", 40, sound=(16000, "mono", 4)).read_bytes()
    mkv = write_video(tmp_path / "ok.mkv", 40, sound=(16000, "mono", 4)).read_bytes()
    wav = write_wav(tmp_path / "ok.wav", np.zeros((1, 16000), np.int16), 16000).read_bytes()
    cases = {
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"just some text\n" * 50, "not a media file"),
        "noise.mp4": (np.random.default_rng(0).bytes(5000), "noise.mp4"),
        "cut.mp4": (video[: len(video) // 2], "cut.mp4"),
        "cut.mkv": (mkv[: len(mkv) // 2], "truncated"),
        "words.srt": (CUES, "no video and no audio"),
        "cut.wav": (wav[: len(wav) // 2], "truncated"),
        "new\nline.mp4": (b"x" * 99, r"new\\nline.mp4: not a media"),
    }
    for name, (data, match) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MediaError, match=match) as caught:
            nanoemox.read_clip(tmp_path / name)
        assert name.replace("\n", "\\n") in str(caught.value) and "\n" not in str(caught.value)
    for path, match in ((tmp_path, "not a file"), (tmp_path / "nothing.mp4", "no such file")):
        with pytest.raises(MediaError, match=match):
            nanoemox.read_clip(path)


def test_names_mean_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("frame%03d.mp4", "a b'\"\n.mp4", "-x.mp4", "http:", "x.m3u8", "x"):
        shutil.copy(SAMPLE, name)
        assert nanoemox.read_clip(name).frames is not None, name


def test_limits(tmp_path):
    for limits, match in (
        (Limits(pixels=1000), "1000 pixels are allowed"),
        (Limits(duration=1.0), "longer than the allowed 1 s"),
        (Limits(streams=1), "streams"),
        (Limits(memory=80 << 20), "memory"),
        (Limits(seconds=0.01), "not read within 0.01 s"),
    ):
        with pytest.raises(MediaError, match=match):
            nanoemox.read_clip(SAMPLE, limits=limits)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {url}\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
        '<AdaptationSet mimeType="video/mp4">'
        "<Representation><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
    ],
)
def test_playlists_are_refused_without_a_connection(text, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        port = server.getsockname()[1]
        for name in ("x.m3u8", "x.mp4"):
            (tmp_path / name).write_text(text.format(url=f"http://127.0.0.1:{port}/x.ts", port=port))
            with pytest.raises(MediaError, match="playlist"):
                nanoemox.read_clip(tmp_path / name)
        with pytest.raises(TimeoutError):
            server.accept()


def workers() -> set[int]:
    processes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"nanoemox.media.child" in (folder / "cmdline").read_bytes():
                processes.add(int(folder.name))
        except OSError:
            pass
    return processes


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_the_decoder_dies_with_its_parent(tmp_path):
    pipe = tmp_path / "hangs.mp4"
    os.mkfifo(pipe)
    before = workers()
    code = "import nanoemox.media.read as m, sys; m._check_file = lambda f: None; m.read_clip(sys.argv[1])"
    parent = subprocess.Popen([sys.executable, "-c", code, str(pipe)], cwd=ROOT)

    def wait(alive: bool) -> bool:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if bool(workers() - before) == alive:
                return True
            time.sleep(0.05)
        return False

    assert wait(alive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait(alive=False)


def test_reading_works_in_threads():
    clips = []
    threads = [threading.Thread(target=lambda: clips.append(nanoemox.read_clip(SAMPLE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clips) == 4 and all((clip.frames == clips[0].frames).all() for clip in clips)


def namespaces() -> bool:
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode
    )


@pytest.mark.skipif(not namespaces(), reason="network namespaces are not allowed here")
def test_reading_and_answering_need_no_network():
    code = (
        "import nanoemox; c = nanoemox.read_clip(nanoemox.bundle.find.DEMO / 'sample.mp4')\n"
        "print(nanoemox.load().answer(c, max_new_tokens=3).tokens)"
    )
    code = code.replace("import nanoemox;", "import nanoemox, nanoemox.bundle.find;")
    run = ["unshare", "-rn", sys.executable, "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(out.stdout) in (1, 2, 3)
