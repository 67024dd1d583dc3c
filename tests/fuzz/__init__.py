"""Every reader under hostile bytes: coverage-guided runs (``make fuzz``) and quick laws.

* :mod:`tests.fuzz.seeds`: small valid files of every format, one module a format;
* :mod:`tests.fuzz.mutation`: changes them inside their zip members, JSON, protobuf fields, …;
* :mod:`tests.fuzz.oracle`: reads one input and says what must not have happened;
* :mod:`tests.fuzz.target`: the atheris process; :mod:`tests.fuzz.campaign` starts it for every
  reader, goes on after crashes and interruptions, and writes the table.
"""
