"""What a machine has to be, to run models here, and what to do where it is not.

    facts = examine(cache_folder, model="smollm2")      # looks; llama.cpp is looked at in a child process
    diagnosis = diagnose(facts)                          # pure: decides
    diagnosis.exit_code

Three steps, each in its own module: ``examine`` looks and decides nothing, ``facts`` is what was seen, and ``checks``
decides.  So every machine that is wrong can be made in a test by writing down its facts.
"""

from lamella.doctor.checks import diagnose
from lamella.doctor.examine import examine
from lamella.doctor.facts import Facts
from lamella.doctor.findings import Diagnosis, Finding, Status

__all__ = ["Diagnosis", "Facts", "Finding", "Status", "diagnose", "examine"]
