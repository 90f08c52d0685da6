"""What every room needs of the machine, and one home for each: nothing here knows a room or PostgreSQL.

``durable``
    Files that appear complete or not at all.
``locks``
    Locks between the processes of a machine.
``fork``
    Callbacks around ``fork``.
``home``
    The user's folder of voxtier.
``machine``
    Whether another process runs, and since when; how much memory there is.
``progress``, ``text``, ``html``
    Progress, sizes, durations and names for people; objects in notebooks.
``s3_config``
    How ``s3://`` is reached.
``workers``
    Threads whose work ends with the block that they are made for.
"""
