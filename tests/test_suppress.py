"""What is kept from the user, and what must not be: notices of other threads, and the settings of the process."""

import logging
import os
import sys
import warnings
from threading import Event, Thread

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from conftest import picture
from shvit.data.decode import decode
from shvit.errors import Notice, notice
from shvit.suppress import environment, quiet, silent, unwarned


def test_a_notice_is_told_while_another_thread_opens_an_image(tmp_path, monkeypatch):
    picture(90).save(tmp_path / "a.png")
    opening, opened = Event(), Event()
    open_image = Image.open

    def slow(*arguments, **options):
        opening.set()
        opened.wait(60)
        return open_image(*arguments, **options)

    monkeypatch.setattr(Image, "open", slow)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", Notice)
        thread = Thread(target=decode, args=(tmp_path / "a.png",))
        thread.start()
        assert opening.wait(60)
        notice("from the main thread")
        opened.set()
        thread.join()
        notice("afterwards")
    assert [str(one.message) for one in told] == ["from the main thread", "afterwards"]


def test_pillows_warnings_are_no_ones(tmp_path, monkeypatch):
    picture(90).save(tmp_path / "a.png")
    open_image = Image.open

    def warning(*arguments, **options):
        warnings.warn("odd file", stacklevel=1)
        return open_image(*arguments, **options)

    monkeypatch.setattr(Image, "open", warning)
    decode(tmp_path / "a.png")  # pytest makes an error of any warning
    with pytest.raises(UserWarning, match="odd file"):
        Image.open(tmp_path / "a.png")


def test_nor_are_those_of_damaged_pixels(tmp_path, monkeypatch):
    picture(90).save(tmp_path / "a.png")
    load = PngImageFile.load

    def warning(self):
        warnings.warn("odd pixels", stacklevel=1)
        return load(self)

    monkeypatch.setattr(PngImageFile, "load", warning)
    decode(tmp_path / "a.png")  # pytest makes an error of any warning


def overlapping(block) -> None:
    """Two threads in the block: the first to enter it is the first to leave it, where it lets two in at once."""
    inside = [Event(), Event()]

    def first():
        with block():
            inside[0].set()
            inside[1].wait(0.3)

    def second():
        inside[0].wait(60)
        with block():
            inside[1].set()
            threads[0].join(1)

    threads = [Thread(target=first), Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("block", [quiet, silent, unwarned, lambda: environment("SHVIT_TEST", "1")])
def test_blocks_that_overlap_leave_everything_as_it_was(block, capfd):
    streams, disabled = (sys.stdout, sys.stderr), logging.root.manager.disable
    overlapping(block)
    assert (sys.stdout, sys.stderr) == streams
    assert logging.root.manager.disable == disabled
    assert "SHVIT_TEST" not in os.environ
    os.write(2, b"written past Python\n")
    assert capfd.readouterr().err == "written past Python\n"
    with pytest.raises(UserWarning, match="not ignored"):
        warnings.warn("not ignored", stacklevel=1)


def test_only_the_thread_that_asked_is_quiet(capfd):
    def other():
        sys.stdout.write("other\n")
        with pytest.raises(UserWarning, match="odd"):
            warnings.warn("odd", stacklevel=1)

    with quiet():
        warnings.warn("odd", stacklevel=1)
        sys.stdout.write("one\n")
        sys.stderr.write("one\n")
        thread = Thread(target=other)
        thread.start()
        thread.join()
    assert capfd.readouterr() == ("other\n", "")


def test_scikit_learn_can_copy_the_filters():
    """Its parallel functions read the pattern of each filter and add a copy."""
    from sklearn.utils.parallel import Parallel, delayed

    with unwarned():
        pass
    before = list(warnings.filters)
    try:
        assert Parallel(n_jobs=1)(delayed(abs)(number) for number in (-1, 2)) == [1, 2]
        with pytest.warns(UserWarning, match="heard"):
            warnings.warn("heard", UserWarning, stacklevel=1)
    finally:
        warnings.filters[:] = before
