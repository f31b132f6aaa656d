import pytest

from tests.ops.precisions import PRECISIONS


@pytest.fixture(params=PRECISIONS, ids=["float64", "float32"])
def precision(request):
    with request.param.enabled() as chosen:
        yield chosen
