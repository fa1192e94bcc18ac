"""How pages and admin write dates and times: Django's own for British English have a.m. and p.m., and no time zone."""

DATE_FORMAT = SHORT_DATE_FORMAT = "j F Y"
TIME_FORMAT = "H:i T"
DATETIME_FORMAT = SHORT_DATETIME_FORMAT = "j F Y, H:i T"
