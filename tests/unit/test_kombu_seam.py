"""What kombu keeps to itself: each name that is used fails here when it is not what it was."""

from __future__ import annotations

import zlib

import kombu.compression
from kombu import serialization

from celery_durable.seams.kombu import compressions, content_types, serializer_of

NAME, CONTENT_TYPE = "celery-durable-test", "application/x-celery-durable-test"


def test_a_serializer_is_known_by_its_name_and_by_its_content_type() -> None:
    serialization.register(NAME, str, str, CONTENT_TYPE)
    try:
        assert content_types()[NAME] == CONTENT_TYPE
        assert serializer_of(CONTENT_TYPE) == NAME
    finally:
        serialization.unregister(NAME)
    assert NAME not in content_types()
    assert serializer_of(CONTENT_TYPE) == CONTENT_TYPE


def test_a_compression_is_known_by_its_names() -> None:
    assert {"gzip", "zlib"} <= set(compressions())
    kombu.compression.register(zlib.compress, zlib.decompress, CONTENT_TYPE, aliases=[NAME])
    try:
        assert NAME in compressions()
        assert kombu.compression.compress(b"text", NAME)[1] == CONTENT_TYPE
    finally:
        for known in (kombu.compression._aliases, kombu.compression._encoders, kombu.compression._decoders):  # type: ignore[attr-defined]  # noqa: SLF001
            known.pop(NAME, None)
            known.pop(CONTENT_TYPE, None)
