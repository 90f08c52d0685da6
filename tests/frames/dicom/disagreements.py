"""Where pydicom is no oracle, and the clause or fact that says so: one entry a case or file."""

from __future__ import annotations

FRAME_IN_FRAGMENTS = "PS3.5 A.4: a frame may span fragments, a fragment never holds two frames"
TABLE_OF_FRAMES = "PS3.5 A.4: N entries, one a frame, each the place of an Item tag, the first one 0"
EXTENDED_TABLE = "PS3.3 C.7.6.3.1.8: one entry a frame, each the place of an Item tag"
DAMAGED = "the delimiter is missing or broken; pydicom drops the whole element and with it every whole frame"
CUT = "the file ends early; pydicom drops the whole element and with it every frame that is whole"
VIDEO = "PS3.5 8.2.5 and following: one bit stream for all frames, in any number of fragments"

INTEGER_FIRST = "PS3.5 6.2: IS is an integer, and this begins with one; pydicom refuses the whole text"
BINARY = "the value's bytes are a binary number, which no VR says; pydicom takes them for text"
COUNTED = "Number of Frames is no number from 1 on, but the pixels hold a whole number of frames"
COUNTED_BY_TABLE = "Number of Frames is no number, but a table names an Item for each frame"
LAST_IS_SHORT = (
    "the last fragment's length is too small: pydicom hands the frame out without its end, or none"
)
PAST_DELIMITER = "pydicom reads past the delimiter to the end of the file"
STRAY = "PS3.5 7.5: a delimiter outside a sequence closes nothing; pydicom stops there"
FULL = "PS3.3 C.7.6.3.1.2: fewer than three samples a pixel, yet this value holds three"

_ENCODINGS = ("native", "implicit", "big_endian", "deflated", "jpeg")
REPORTED = {
    **{f"r_number_{name}_{kind}": INTEGER_FIRST for name in ("two_values", "unit") for kind in _ENCODINGS},
    **{f"r_number_as_{vr}_implicit": BINARY for vr in ("us", "ul", "ss", "sl")},
    **{
        f"r_number_{name}_native": COUNTED
        for name in (
            "exponent",
            "negative",
            "word",
            "fraction",
            "too_large_for_32_bits",
            "too_large_for_is",
            "huge",
        )
    },
    "r_number_as_sl_negative": COUNTED,
    "r_number_word_one_jpeg": "pydicom refuses the text; one fragment is one frame",
    "r_number_word_bot": COUNTED_BY_TABLE,
    "r_count_absent_jpeg_3_eot_offsets": f"{EXTENDED_TABLE}; the Items hold the lengths that the table lacks",
    "r_count_1_bot_names_each_fragment_of_one_jpeg": f"{TABLE_OF_FRAMES}; one Item of three begins an image",
    **{
        f"r_nested_{name}_depth_{depth}": PAST_DELIMITER
        for name in ("sequence_sequence", "item_item", "sequence")
        for depth in (1, 2, 3)
    },
    **{
        f"r_stray_item_end_{number}_{kind}": STRAY
        for number in (1, 2)
        for kind in ("explicit", "implicit", "big_endian")
    },
    **{f"r_ybr_full_422_{frames}f_{48 * frames}": FULL for frames in (1, 5)},
    **{f"r_ybr_partial_420_{frames}f_{48 * frames}": FULL for frames in (1, 2)},
}
DAMAGED_FILES = {
    **{
        f"d_last_{codec}_of_{frames}_{less}_too_short_{table}": LAST_IS_SHORT
        for codec in ("jpeg", "j2k", "rle", "raw")
        for frames, table in ((1, "none"), (3, "none"), (3, "bot"))
        for less in (2, 12)
    },
    "d_eot_shifted_bot_right": EXTENDED_TABLE,
    "d_pixel_vr_ul_exact": "the value has exactly the size of the frame; pydicom makes numbers of it",
}

CASES = {
    "n28_dicm_inside_data": "PS3.10 7.1: the prefix follows a preamble; here it lies inside a value",
    "n41_unknown_vr": "PS3.5 Table 7.1-1: every VR outside Table 7.1-2 has a 32-bit length, unknown ones too",
    "n22_truncated_native": "pydicom hands out the frames that are cut off as short or empty bytes",
    "n46_item_delim_in_place_of_seq_delim": "pydicom reads past the delimiter to the end of the file",
    "e44_vr_un_encapsulated": "PS3.5 6.2.2: UN of undefined length is a sequence, but never as Pixel Data",
    "e06_nobot_multifrag_j2k": f"{FRAME_IN_FRAGMENTS}; pydicom looks for EOI in mid-codestream",
    "e35_jxl_nobot_multifrag": f"{FRAME_IN_FRAGMENTS}; JPEG XL has no EOI marker to look for",
    "e45_eoi_in_mid_fragment": f"{FRAME_IN_FRAGMENTS}; an EOI at a fragment's end need not end the frame",
    "e07_nobot_multifrag_rle_ambiguous": f"{FRAME_IN_FRAGMENTS}; pydicom takes all for one frame of three",
    "e12_eot_lengths_unpadded": "pydicom leaves the pad byte out, voxtier gives the Item's whole value",
    "e13_eot_wrong_count": EXTENDED_TABLE,
    "e14_eot_bogus_offsets": EXTENDED_TABLE,
    "e15_eot_without_lengths": f"{EXTENDED_TABLE}; the Items hold the lengths that the table lacks",
    "e17_bot_per_fragment": TABLE_OF_FRAMES,
    "e18_bot_biased_by_bot_item": TABLE_OF_FRAMES,
    "e19_bot_out_of_order": f"{TABLE_OF_FRAMES}; nothing demands that frames lie in their order",
    "e20_bot_all_zero": TABLE_OF_FRAMES,
    "e21_bot_too_short_table": TABLE_OF_FRAMES,
    "e46_bot_len_not_multiple_4": f"{TABLE_OF_FRAMES}; three entries are there, two bytes are left over",
    "e23_no_delimiter": DAMAGED,
    "e25_zeros_instead_of_delimiter": DAMAGED,
    "e26_truncated_last_fragment": DAMAGED,
    "e28_trailing_empty_fragment": "an empty fragment after N whole frames is no frame N + 1",
    "e42_more_fragments_1extra_nonempty": "three whole images for two frames: pydicom gives three",
    "e47_no_bot_item_first_is_frame": "PS3.5 A.4: the first Item is the table; no frame follows it",
    "e32_video_3frag_100f": VIDEO,
    "e33_video_frag_mpeg_01": VIDEO,
    "x_dicm_without_preamble": "no standard; GDCM and DCMTK read it as well",
    "x_big_endian_in_little_endian_ts": "no standard; the tags show the byte order",
    "x_seq_delim_in_place_of_item_delim": "pydicom reads past the delimiter to the end of the file",
    "x_stray_delimiter": "PS3.5 7.5: a delimiter outside a sequence closes nothing; pydicom stops there",
    "x_ybr422_stored_as_3_samples": "PS3.3 C.7.6.3.1.2: two samples a pixel, yet this value holds three",
    "x_number_of_frames_is_junk": "pydicom hands the text on; no integer, so one frame",
    "x_number_of_frames_behind_a_nul": "pydicom takes no text that begins with a NUL; no integer either",
    "x_number_of_frames_negative": "no image has -3 frames",
    "x_short_pixel_data": "pydicom hands out the frame that is not there as empty bytes",
    "x_65535_squared": "pydicom hands out the frame that is not there as 64 bytes",
    "x_bits_allocated_zero": "a frame of no bits has no bytes",
    "x_jxl_box_start": f"{FRAME_IN_FRAGMENTS}; JPEG XL has no EOI marker to look for",
    "x_jp2_box_start": f"{FRAME_IN_FRAGMENTS}; pydicom looks for EOI in mid-codestream",
    "x_rle_trailing_empty": "an empty fragment after N whole frames belongs to none",
    "x_eot_multifrag_lengths_of_frames": f"{EXTENDED_TABLE}, and one fragment a frame",
    "x_eot_length_too_long": f"{EXTENDED_TABLE}; the length reaches over the next Item",
    "x_eot_wrong_bot_right": EXTENDED_TABLE,
    "x_bot_multifrag_out_of_order": f"{TABLE_OF_FRAMES}; nothing demands that frames lie in their order",
    "x_bot_past_end": TABLE_OF_FRAMES,
    "x_encapsulated_with_defined_length": "the value begins with Items although its length is defined",
    "x_leica_items_1_early": "an Item stands one byte before its place; pydicom stops there",
    "x_leica_items_2_early": "an Item stands two bytes before its place; pydicom stops there",
    "x_leica_items_3_early": "an Item stands three bytes before its place; pydicom stops there",
    "x_cut_bot_in_frame_1": CUT,
    "x_cut_bot_in_frame_2": CUT,
    "x_cut_bot_between_items": CUT,
    "x_cut_bot_in_an_item_header": CUT,
    "x_cut_bot_never_finished_download": CUT,
    "x_cut_eot_in_frame_1": CUT,
    "x_cut_bot_multifrag_in_frame_2": CUT,
    "x_cut_bot_multifrag_in_frame_0": CUT,
    "x_cut_rle_in_frame_1": CUT,
    "x_cut_before_the_last_fragment": CUT,
    "x_astray_in_mid_frame": DAMAGED,
    "x_astray_after_the_image": DAMAGED,
    "x_next_element_in_place_of_delimiter": DAMAGED,
    **REPORTED,
    **DAMAGED_FILES,
}

# File of pydicom's test set -> what voxtier answers, and why that is not pydicom's answer.
FILES = {
    "MR_truncated.dcm": ("truncated", "pydicom hands out the cut frame as if it were whole"),
    "badVR.dcm": ("ok", "Number of Frames is '1A', no integer, so one frame; pydicom hands the text on"),
    "meta_missing_tsyntax.dcm": ("missing_image_attributes", "pixels without Rows or Columns"),
    "nested_priv_SQ.dcm": ("missing_image_attributes", "pixels without Rows or Columns"),
}
