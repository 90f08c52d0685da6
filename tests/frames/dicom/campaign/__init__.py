"""A campaign of damaged files against silent wrong answers.

A mutant is a readable file with one thing changed. Where the file is damaged, what it should give is known:
the frames of the file before. voxtier may refuse it, call it truncated, or give those frames; anything else
is *silent*. Independent readers are asked about silent mutants, and where two of them agree on other frames
than voxtier serves, voxtier is *wrong*. Answers that differ by ``verify=`` are wrong without any judge.

Three kinds of damage, each with its goal for the silent rate:

- one length field wrong, by 1 to 12 bytes, every field of every file: 0.1 %
- one structured mutation, `damage`: 0.1 %
- one byte of a header wrong: 1.3 %, for see below

A fourth kind, `meaning`, has no goal: those mutants are sound files that say something else, such as a
smaller Number of Frames or the same table in another order. No reader can know what they said before.

What cannot be seen in damage, and why:

- A header byte that turns one attribute into another sound one: Rows 4 becomes 5 where Columns or Number of
  Frames make it fit, Bits Allocated 8 becomes 12 of a compressed frame, a tag of Pixel Data becomes one that
  nobody knows in a file whose SOP Class need not have pixels. About 1.1 % of all header bytes.
- Bytes that a codec without start markers (RLE in foreign forms, encapsulated uncompressed, deflated frames)
  loses with a fragment of a frame that has several: voxtier does not decode.
- A length of a fragment that is wrong by what its successor makes good: two errors, not one.
- A file cut before the first element that says it is an image: at byte 132, or an RT Dose before its Rows.
- A frame whose pad byte is lost or doubled is the same frame (PS3.5 A.4).
"""
