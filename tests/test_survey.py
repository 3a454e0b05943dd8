"""The server of a survey under a thousand malformed uploads."""

import http.client
import json
import random
import socket
import threading

import torch

from natrig_nb.survey.answers import MAX_BYTES, expected_answer, read_answers
from natrig_nb.survey.page import make_study, write_survey
from natrig_nb.survey.plan import Design
from natrig_nb.survey.server import make_server
from natrig_nb.survey.stimuli import rendered_stimuli
from natrig_nb.testing import toy_generator
from natrig_nb.trigger.badnets import BadNets


def small_study():
    """One trigger of a toy generator, with few questions."""
    design = Design(("patch",), n_blocks=1, n_pairs=1)
    real = torch.full((design.n_real, 3, 32, 32), 60, dtype=torch.uint8)
    stimuli = rendered_stimuli(toy_generator(), {"patch": BadNets()}, real, design.n_identities)
    return make_study(stimuli, design)


def malformed(record, kind, rng):
    """An upload with one fault."""
    texts = ("../../etc/passwd", "<script>alert(1)</script>", "'; DROP TABLE a", "\x00", "a" * 300)
    content = json.loads(json.dumps(record))
    faults = (
        "entry",
        "extra",
        "lost",
        "answer",
        "picture",
        "bytes",
        "cut",
        "deep",
        "order",
        "huge",
    )
    fault = faults[kind % len(faults)]
    if fault == "entry":
        content[rng.choice(list(content))] = rng.choice(texts)
    if fault == "lost":
        del content[rng.choice(list(content))]
    if fault == "extra":
        content[rng.choice(texts)] = rng.choice((None, -1, 10**30, 1.5, [], {}, True, "0"))
    if fault in ("answer", "picture"):
        answer = rng.choice(content["answers"])
        place = answer if fault == "answer" else rng.choice(answer["pictures"])
        place[rng.choice(list(place))] = rng.choice(texts)
    if fault == "order":
        content["answers"].reverse()
    text = json.dumps(content).encode()
    if fault == "bytes":
        return rng.randbytes(rng.randrange(2000))
    if fault == "cut":
        return text[: rng.randrange(len(text))]
    if fault == "deep":
        return b"[" * rng.randrange(10_000, 100_000)
    return text + b" " * MAX_BYTES if fault == "huge" else text


def post(port, content, path="/answers", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", path, content, {"Content-Type": "application/json", **headers})
    return connection.getresponse().status


def pour(port, n_bytes):
    """Announce and send an upload of many bytes until the server has had enough; the status, if any."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        head = f"POST /answers HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: {n_bytes}\r\n\r\n".encode())
        sent = 0
        try:
            while sent < n_bytes:
                line.sendall(b" " * 1_000_000)
                sent += 1_000_000
        except OSError:
            return sent
    return sent


def test_a_thousand_malformed_uploads(tmp_path_factory, tmp_path):
    study = small_study()
    page = write_survey(tmp_path_factory.mktemp("page") / "survey.html", study)
    server = make_server(page, tmp_path / "inside" / "answers", port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    answers = []
    for trial in study["forms"][2]:
        asked = expected_answer(study, trial)
        pictures = [{**picture, "chosen": picture["tampered"]} for picture in asked["pictures"]]
        answers.append({**asked, "pictures": pictures, "confidence": 3, "ms": 900})
    record = {
        "version": 1,
        "study": study["digest"],
        "session": "56" * 16,
        "form": 2,
        "language": "en",
    }
    record |= {"complete": True, "seconds": 60, "pixel_ratio": 1, "answers": answers}
    rng = random.Random(0)
    port = server.server_port
    statuses = [post(port, malformed(record, kind, rng)) for kind in range(990)]
    statuses += [
        post(port, json.dumps(record), path)
        for path in ("/", "/answers/../../x.json", "/answers/x")
    ]
    statuses += [
        post(port, json.dumps(record), **{"Content-Type": kind})
        for kind in ("text/plain", "text/html")
    ]
    statuses += [post(port, b"{}", **{name: "evil.example"}) for name in ("Host", "Origin")]
    statuses.append(post(port, b"{}", **{"Content-Length": "100000000"}))
    statuses.append(post(port, b"{}", **{"Transfer-Encoding": "chunked"}))
    assert pour(port, 100_000_000) < 100_000_000
    assert len(statuses) + 1 == 1000
    assert set(statuses) <= {400, 404, 411, 413, 415, 421}
    assert statuses.count(413) == 100
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert made == []
    assert thread.is_alive()
    assert post(port, json.dumps(record)) == 201
    assert len(read_answers(tmp_path / "inside" / "answers").people) == 1
    server.shutdown()
    server.server_close()
