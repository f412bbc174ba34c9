"""The HTTP API: the model's probabilities, an error an image, and answers as the OpenAPI document says."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import numpy as np
import onnxruntime
import pytest
from PIL import Image
from starlette.testclient import TestClient

import quickstudy
from quickstudy.images.decoding import decode
from quickstudy.models.web import SHARED
from quickstudy.serving.app import make_app
from quickstudy.serving.limits import ServerSettings
from quickstudy.serving.registry import parse_models


def probabilities_of(prediction: dict[str, Any], classes: tuple[str, ...]) -> list[float]:
    shares = {row["label"]: row["probability"] for row in prediction["classes"]}
    return [shares[name] for name in classes]


def bomb(side: int) -> bytes:
    """A PNG whose header announces side×side pixels."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


class TestPredict:
    def test_a_raw_body_gives_what_the_model_gives(self, client: TestClient, trained: Path, photo_source: Path) -> None:
        model = quickstudy.load(trained / "photos.onnx")
        for path in sorted(photo_source.rglob("*.jpg"))[::5]:
            answer = client.post("/predict", content=path.read_bytes())
            assert answer.status_code == 200
            [prediction] = answer.json()["predictions"]
            [expected] = model.predict_proba(path)
            np.testing.assert_allclose(probabilities_of(prediction, model.classes), expected, atol=1e-6)
            assert prediction["label"] == model.classes[expected.argmax()] == path.parent.name
            assert prediction["probability"] == pytest.approx(expected.max(), abs=1e-6)
            assert "file" not in prediction

    def test_classes_come_most_probable_first(self, client: TestClient, photo: Path) -> None:
        [prediction] = client.post("/predict", content=photo.read_bytes()).json()["predictions"]
        shares = [row["probability"] for row in prediction["classes"]]
        assert shares == sorted(shares, reverse=True)
        assert {row["label"] for row in prediction["classes"]} == {"checks", "discs", "stripes"}
        assert prediction["classes"][0] == {key: prediction[key] for key in ("label", "probability")}

    @pytest.mark.parametrize(("top", "count"), [("1", 1), ("2", 2), ("50", 3)])
    def test_top_limits_the_classes(self, client: TestClient, photo: Path, top: str, count: int) -> None:
        [prediction] = client.post(f"/predict?top={top}", content=photo.read_bytes()).json()["predictions"]
        assert len(prediction["classes"]) == count

    @pytest.mark.parametrize(
        ("query", "told"),
        [
            ("tpo=5", "no parameter 'tpo'; known are top, neighbours, sets, by_class"),
            ("sets=95&by_class=7", "'by_class' must be a whole number from 0 to 1"),
            ("top=2&Top=3", "no parameter 'Top'"),
            ("x", "no parameter 'x'"),
            ("top=2&top=3", "'top' is given 2 times"),
        ],
    )
    def test_parameters_that_would_do_nothing(self, query: str, told: str, client: TestClient, photo: Path) -> None:
        for path in ("/predict", "/models/photos/predict"):
            answer = client.post(f"{path}?{query}", content=photo.read_bytes())
            assert answer.status_code == 400
            assert told in answer.json()["error"]
        for path in ("/model", "/models"):
            answer = client.get(f"{path}?top=3")
            assert answer.status_code == 400
            assert answer.json()["error"] == "there is no parameter 'top'; none is known here"
        assert client.get("/?utm_source=x").status_code == 200

    def test_parameters_as_fields_of_a_form(self, client: TestClient, photo: Path) -> None:
        files = {"image": ("photo.jpg", photo.read_bytes())}
        answer = client.post("/predict", files=files, data={"top": "1"})
        assert (answer.status_code, "as ?top=" in answer.json()["error"]) == (400, True)
        assert client.post("/predict", files=files, data={"comment": "mine"}).status_code == 200

    @pytest.mark.parametrize("query", ["top=0", "top=-1", "top=x", "top=", "top=1e9", "top=٣", "neighbours=x"])
    def test_an_impossible_number_is_400(self, client: TestClient, photo: Path, query: str) -> None:
        answer = client.post(f"/predict?{query}", content=photo.read_bytes())
        assert answer.status_code == 400
        assert query.partition("=")[0] in answer.json()["error"]

    def test_a_form_keeps_order_and_names_and_one_bad_file_fails_nobody(
        self, client: TestClient, photo_source: Path
    ) -> None:
        stripes, checks = photo_source / "stripes" / "00.jpg", photo_source / "checks" / "00.jpg"
        files = [
            ("a", ("größe.jpg", stripes.read_bytes())),
            ("b", ("broken.jpg", stripes.read_bytes()[:4000])),
            ("a", ("", b"text")),
            ("a", ("same.jpg", checks.read_bytes())),
            ("c", ("same.jpg", b"")),
        ]
        answer = client.post("/predict", files=files, data={"a note": "ignored"})
        assert answer.status_code == 200
        predictions = answer.json()["predictions"]
        assert [p.get("file") for p in predictions] == ["größe.jpg", "broken.jpg", "same.jpg", "same.jpg"]
        assert [p.get("label") for p in predictions] == ["stripes", None, "checks", None]
        assert [p.get("error") for p in predictions] == [
            None,
            "truncated (the scan ends after 57 % of the rows)",
            None,
            "empty file (0 bytes)",
        ]

    def test_a_form_without_a_usable_image_is_422_with_each_reason(self, client: TestClient, photo: Path) -> None:
        answer = client.post("/predict", files=[("i", ("a", b"text")), ("i", ("b", photo.read_bytes()[:500]))])
        assert answer.status_code == 422
        assert answer.json()["error"] == "no image can be used"
        assert ["error" in prediction for prediction in answer.json()["predictions"]] == [True, True]

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b"no image", "not an image"),
            (b"<html><body>404", "HTML"),
            (b"\xff\xd8\xff\xe0", "damaged"),
            (bomb(60_000), "too many pixels"),
            (bomb(9_000), "64 million"),
        ],
    )
    def test_a_raw_body_that_is_no_image_is_422_with_the_reason(
        self, client: TestClient, body: bytes, reason: str
    ) -> None:
        answer = client.post("/predict", content=body)
        assert answer.status_code == 422
        assert reason in answer.json()["error"]

    def test_nothing_is_400_and_json_is_415(self, client: TestClient) -> None:
        assert client.post("/predict").status_code == 400
        answer = client.post("/predict", json={"url": "http://127.0.0.1/photo.jpg"})
        assert answer.status_code == 415
        assert "not fetched" in answer.json()["error"]

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("multipart/form-data", b"x"),
            ("multipart/form-data; boundary=" + 300 * "b", b"x"),
            ("multipart/form-data; boundary=b", b""),
            ("multipart/form-data; boundary=b", b"--b\r\n"),
            ("multipart/form-data; boundary=b", b"nonsense"),
            (
                "multipart/form-data; boundary=b",
                b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n',
            ),
            ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; filename=x\r\n\r\n1234"),
        ],
    )
    def test_a_malformed_form_is_400(self, client: TestClient, content_type: str, body: bytes) -> None:
        answer = client.post("/predict", content=body, headers={"content-type": content_type})
        assert answer.status_code == 400
        assert answer.json()["error"]

    def test_the_type_that_curl_sends_by_itself_is_no_obstacle(self, client: TestClient, photo: Path) -> None:
        headers = {"content-type": "application/x-www-form-urlencoded"}
        answer = client.post("/predict", content=photo.read_bytes(), headers=headers)
        assert answer.json()["predictions"][0]["label"] == "discs"

    def test_a_body_that_is_too_large_is_413_announced_or_not(self, trained: Path, photo: Path) -> None:
        app = make_app({"photos": trained / "photos.onnx"}, ServerSettings(most_bytes=1000))
        with TestClient(app, base_url="http://127.0.0.1") as small:
            assert small.post("/predict", content=photo.read_bytes()).status_code == 413
            assert small.post("/predict", content=(bytes(300) for _ in range(4))).status_code == 413
            assert small.post("/predict", content=(bytes(300) for _ in range(3))).status_code == 422

    def test_too_many_files_are_413(self, trained: Path) -> None:
        app = make_app({"photos": trained / "photos.onnx"}, ServerSettings(most_files=3))
        with TestClient(app, base_url="http://127.0.0.1") as small:
            assert small.post("/predict", files=[("i", ("x", b"1"))] * 3).status_code == 422
            assert small.post("/predict", files=[("i", ("x", b"1"))] * 4).status_code == 413

    def test_other_methods_and_addresses_are_refused_as_json(self, client: TestClient) -> None:
        assert client.get("/predict").status_code == 405
        assert client.get("/predict/").status_code == 404
        assert client.get("/../../etc/passwd").status_code == 404
        assert client.get("/nothing").json() == {"error": "Not Found"}


class TestModels:
    def test_several_models_by_name(self, client: TestClient, photo: Path) -> None:
        listing = client.get("/models").json()["models"]
        assert [model["name"] for model in listing] == ["photos", "other"]
        assert client.get("/model").json() == client.get("/models/photos").json() == listing[0]
        answer = client.post("/models/other/predict", content=photo.read_bytes()).json()
        assert answer["model"] == "other"
        assert {row["label"] for row in answer["predictions"][0]["classes"]} == {"checks", "discs"}

    def test_an_unknown_model_is_404(self, client: TestClient, photo: Path) -> None:
        assert client.get("/models/nobody").status_code == 404
        assert client.post("/models/nobody/predict", content=photo.read_bytes()).status_code == 404

    def test_says_what_the_file_says(self, client: TestClient, trained: Path) -> None:
        model = quickstudy.load(trained / "photos.onnx")
        said = client.get("/model").json()
        assert said["classes"] == list(model.classes)
        assert said["input"] == model.input.to_dict()
        assert said["test"] == model.metadata["training"]["test"]
        assert said["backbone"]["name"] == "efficientnet_lite0"
        assert said["problem"] is None

    def test_health(self, client: TestClient) -> None:
        assert client.get("/healthz").json() == {"alive": True}
        assert client.get("/readyz").json() == {"ready": True, "models_current": True}


class TestNeighbours:
    def test_are_the_nearest_training_images(self, client: TestClient, photo: Path) -> None:
        answer = client.post("/predict?neighbours=4", content=photo.read_bytes()).json()
        neighbours = answer["predictions"][0]["neighbours"]
        assert [neighbour["label"] for neighbour in neighbours[:2]] == ["discs", "discs"]
        similarities = [neighbour["similarity"] for neighbour in neighbours]
        assert similarities == sorted(similarities, reverse=True)
        assert len(neighbours) == 4
        kind, _, data = neighbours[0]["thumbnail"].partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (96, 84)

    def test_take_one_decoding_and_one_pass(self, trained: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sessions: list[object] = []
        passes: list[list[str]] = []
        decoded: list[bytes] = []
        begin, run = onnxruntime.InferenceSession.__init__, onnxruntime.InferenceSession.run

        def counted_begin(session: Any, *arguments: Any, **options: Any) -> None:
            sessions.append(session)
            begin(session, *arguments, **options)

        def counted_run(session: Any, outputs: list[str], *arguments: Any) -> Any:
            passes.append(outputs)
            return run(session, outputs, *arguments)

        def counted_decode(data: bytes, *arguments: Any, **options: Any) -> Any:
            decoded.append(data)
            return decode(data, *arguments, **options)

        monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", counted_begin)
        monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted_run)
        for module in [one for name, one in sys.modules.items() if name.startswith("quickstudy")]:
            if getattr(module, "decode", None) is decode:
                monkeypatch.setattr(module, "decode", counted_decode)
        app = make_app({"photos": trained / "photos.onnx"}, ServerSettings())
        assert len(sessions) == 1
        with TestClient(app, base_url="http://127.0.0.1") as fresh:
            for query in ("?neighbours=3", "?neighbours=0", ""):
                passes.clear(), decoded.clear()
                assert fresh.post("/predict" + query, content=photo.read_bytes()).status_code == 200
                assert decoded == [photo.read_bytes()]
                assert [len(names) for names in passes] == [2]  # probabilities and features, which are there anyway
            decoded.clear()
            assert fresh.post("/predict?neighbours=3", content=b"x").status_code == 422
            assert decoded == [b"x"]

    def test_change_nothing_of_the_prediction(self, client: TestClient, photo: Path) -> None:
        [plain] = client.post("/predict", content=photo.read_bytes()).json()["predictions"]
        [with_neighbours] = client.post("/predict?neighbours=4", content=photo.read_bytes()).json()["predictions"]
        del with_neighbours["neighbours"]
        assert with_neighbours == plain

    def test_are_none_where_none_were_kept_or_asked_for(self, client: TestClient, photo: Path) -> None:
        answer = client.post("/models/other/predict?neighbours=4", content=photo.read_bytes()).json()
        assert answer["predictions"][0]["neighbours"] == []
        assert "neighbours" not in client.post("/predict", content=photo.read_bytes()).json()["predictions"][0]
        assert [model["neighbours"] for model in client.get("/models").json()["models"]][1] == 0


class TestMetrics:
    def test_count_requests_and_images(self, trained: Path, photo: Path) -> None:
        app = make_app({"photos": trained / "photos.onnx"}, ServerSettings())
        with TestClient(app, base_url="http://127.0.0.1") as fresh:
            fresh.post("/predict", files=[("i", ("secret.jpg", photo.read_bytes())), ("i", ("b", b"x"))])
            fresh.post("/predict", content=b"x")
            fresh.get("/no/such/secret")
            text = fresh.get("/metrics").text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert lines['quickstudy_images_total{model="photos",result="classified"}'] == "1.0"
        assert lines['quickstudy_images_total{model="photos",result="unusable"}'] == "2.0"
        assert lines['quickstudy_requests_total{path="/predict",status="200"}'] == "1.0"
        assert lines['quickstudy_requests_total{path="/predict",status="422"}'] == "1.0"
        assert lines['quickstudy_requests_total{path="other",status="404"}'] == "1.0"
        assert lines['quickstudy_predict_seconds_count{model="photos"}'] == "2.0"
        assert lines["quickstudy_pending_images"] == lines["quickstudy_held_bytes"] == "0.0"
        assert "secret" not in text


class TestDocumentation:
    def test_answers_are_as_the_openapi_document_says(self, client: TestClient, photo: Path) -> None:
        document = client.get("/openapi.json").json()
        asked = [
            ("get", "/model", "/model", {}),
            ("get", "/models", "/models", {}),
            ("get", "/models/{name}", "/models/photos", {}),
            ("get", "/models/{name}", "/models/nobody", {}),
            ("get", "/healthz", "/healthz", {}),
            ("get", "/readyz", "/readyz", {}),
            ("post", "/predict", "/predict?neighbours=2", {"content": photo.read_bytes()}),
            ("post", "/predict", "/predict", {"content": b"x"}),
            ("post", "/predict", "/predict", {"content": b""}),
            ("post", "/predict", "/predict", {"json": 1}),
            (
                "post",
                "/models/{name}/predict",
                "/models/other/predict",
                {"files": {"a": photo.read_bytes(), "b": b"x"}},
            ),
            ("post", "/models/{name}/predict", "/models/nobody/predict", {"content": b"x"}),
        ]
        for method, path, address, sent in asked:
            answer = client.request(method, address, **sent)
            described = document["paths"][path][method]["responses"][str(answer.status_code)]
            schema = described["content"]["application/json"]["schema"]
            jsonschema.validate(answer.json(), {**schema, "components": document["components"]})

    def test_every_schema_is_one_and_demands_something(self, client: TestClient) -> None:
        components = client.get("/openapi.json").json()["components"]
        for schema in components["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(schema)
        with pytest.raises(jsonschema.ValidationError):
            reference = {"$ref": "#/components/schemas/Predictions", "components": components}
            jsonschema.validate({"model": "photos"}, reference)

    def test_the_page_names_every_address_and_loads_nothing_from_elsewhere(self, client: TestClient) -> None:
        document, page = client.get("/openapi.json").json(), client.get("/docs").text
        for path in document["paths"]:
            assert path.replace("{", "{") in page
        others = [client.get(f"/{name}").text for name in ("", "page.js", "classifier.js", "page.css", *SHARED)]
        for text in (page, *others):
            assert "//" not in f"\n{text}".replace("http://127.0.0.1", "").replace("\n//", "").replace("  //", "")

    def test_with_a_token_it_says_so(self, trained: Path) -> None:
        app = make_app({"photos": trained / "photos.onnx"}, ServerSettings(token="0123456789abcdef"))
        with TestClient(app, base_url="http://127.0.0.1") as guarded:
            document = json.loads(guarded.get("/openapi.json").text)
            assert document["paths"]["/predict"]["post"]["security"] == [{"token": []}]
            assert "401" in document["paths"]["/predict"]["post"]["responses"]
            assert "Authorization: Bearer" in guarded.get("/docs").text


def test_a_model_of_any_name_is_reached_by_its_encoded_name(trained: Path, photo: Path, tmp_path: Path) -> None:
    file = tmp_path / "Mes photos d'été.onnx"
    file.write_bytes((trained / "photos.onnx").read_bytes())
    with TestClient(make_app(parse_models([str(file)]), ServerSettings()), base_url="http://127.0.0.1:8000") as client:
        name = client.get("/models").json()["models"][0]["name"]
        assert name == "Mes photos d'été"
        answer = client.post(f"/models/{quote(name)}/predict", content=photo.read_bytes())
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["label"]
