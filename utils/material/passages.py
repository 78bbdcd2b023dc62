"""A page of ordinary prose that several chapters read."""

FERRY = (
    "On Tuesday the harbour froze, and the ferry stayed where it was. Captain Ines Moreau read the thermometer, "
    "read it again, and told the crew to make soup. Nobody complained: the soup was good, the cabin was warm, and "
    "the ice does not care how loudly one reads it the timetable. By Friday the ice had cracked, the ferry moved, "
    "and the soup had become a tradition."
)
