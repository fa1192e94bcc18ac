from types import SimpleNamespace

from fedportal.monitoring.logs import joined, lines_of, parse


def piece(offset, text):
    return SimpleNamespace(offset=offset, text=text)


def test_pieces_that_overlap_are_counted_once():
    assert joined([piece(0, "abc"), piece(2, "cde"), piece(3, "de"), piece(5, "f")]) == (b"abcdef", 6)


def test_reading_goes_on_from_any_byte():
    pieces = [piece(0, "one\ntwo\n"), piece(8, "three\n")]
    lines, end = lines_of(pieces, after=4)
    assert [line.text for line in lines] == ["two", "three"]
    assert end == 14
    assert lines_of(pieces, after=end) == ([], 14)


def test_a_line_that_is_still_being_written_waits():
    lines, end = lines_of([piece(0, "done\nhal")])
    assert ([line.text for line in lines], end) == (["done"], 5)
    lines, end = lines_of([piece(0, "done\nhal"), piece(8, "f\n")], after=end)
    assert [line.text for line in lines] == ["half"]


def test_the_last_line_of_a_run_that_is_over_is_shown_even_without_its_end():
    assert [line.text for line in lines_of([piece(0, "Killed")], is_over=True)[0]] == ["Killed"]


def test_offsets_count_bytes_not_letters():
    lines, end = lines_of([piece(0, "Größe\n"), piece(8, "ok\n")])
    assert [line.text for line in lines] == ["Größe", "ok"]
    assert end == 11


def test_the_trainers_lines_become_time_level_and_sentence():
    line = parse('{"at": 1767225600.5, "level": "error", "message": "the disk is full", "traceback": "Traceback …"}')
    assert (line.level, line.text, line.detail) == ("error", "The disk is full", "Traceback …")
    assert line.at.isoformat() == "2026-01-01T00:00:00.500000+00:00"


def test_what_is_not_the_trainers_stays_as_it_is():
    for text in (
        "Segmentation fault",
        "[1, 2]",
        "{}",
        '{"message": "x", "at": "noon"}',
        '{"message": "x", "at": 1e300}',
        "null",
    ):
        assert parse(text).text == text
