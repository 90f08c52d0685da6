"""What every room needs of the machine, and one home for each: nothing here knows a room or PostgreSQL.

``durable``
    Files that appear complete or not at all.
``locks``
    Locks between the processes of a machine.
``fork``
    Callbacks around ``fork``.
``home``
    The user's folder of voxtier.
``processes``
    Whether another process runs, and since when.
``progress``, ``text``
    Progress, sizes, durations and names for people.
``workers``
    Threads whose work ends with the block that they are made for.
"""
