"""Bad and odd input files, and what must be said about each.

``CASES`` serves the tests of the reader and of the command line. A case is refused with an exit code and
a message, or goes through with a note. Those with ``needs`` depend on more than the file:

``reference``
    a reference named ``REFERENCE``, ingested from :func:`good_file` with label key ``cell_type``;
``newer-store``, ``locked-store``, ``full-disk``
    the same, and then the store or the disk put into that state.
"""

from bad_inputs.cases import CASES, REFERENCE, Case
from bad_inputs.cells import good_adata, good_file

__all__ = ["CASES", "REFERENCE", "Case", "good_adata", "good_file"]
