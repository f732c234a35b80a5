"""Runs that are broken on purpose, many times, and compared with the run that nobody broke: ``make chaos``.

The faults are real - processes are killed with SIGKILL or stopped, files are cut, a disk is filled - and hit the
command line in a process of its own. What is looked at afterwards is the run directory and the machine.
"""
