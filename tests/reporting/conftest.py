"""One report, written once."""

import pytest

from layerbridge.reporting.report import write_report
from tests.reporting.html import read_page
from tests.reporting.sample import make_analysis


@pytest.fixture(scope="session")
def analysis():
    return make_analysis()


@pytest.fixture(scope="session")
def report(analysis, tmp_path_factory):
    """The folder of the sample's report."""
    return write_report(analysis, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="session")
def page(report):
    return read_page((report / "index.html").read_text(encoding="utf-8"))
