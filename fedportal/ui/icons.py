"""Icons, drawn for this portal on a 24 × 24 grid: strokes of the text's colour, no fill, round ends."""

from __future__ import annotations

ICONS: dict[str, str] = {
    # states
    "check": '<path d="m5 12.5 4.5 4.5L19 7.5"/>',
    "cross": '<path d="m6.5 6.5 11 11m0-11-11 11"/>',
    "alert": '<path d="M12 4 2.8 19.5h18.4L12 4Z"/><path d="M12 10v4.5m0 2.6v.1"/>',
    "info": '<circle cx="12" cy="12" r="9"/><path d="M12 11v5.5m0-9v.1"/>',
    "circle": '<circle cx="12" cy="12" r="6.5"/>',
    "busy": '<path d="M12 3.5a8.5 8.5 0 1 0 8.5 8.5"/><path d="M12 8v4l2.5 2"/>',
    "clock": '<circle cx="12" cy="12" r="9"/><path d="M12 7v5l3.5 2.5"/>',
    "unknown": '<circle cx="12" cy="12" r="9"/><path d="M9.3 9.4a2.8 2.8 0 1 1 4 2.6c-.9.5-1.3 1-1.3 2m0 2.9v.1"/>',
    # actions
    "play": '<path d="M7.5 5v14l11-7-11-7Z"/>',
    "pause": '<path d="M8 5.5v13m8-13v13"/>',
    "stop": '<rect x="6" y="6" width="12" height="12" rx="1.5"/>',
    "refresh": '<path d="M19.5 12a7.5 7.5 0 1 1-2.3-5.4"/><path d="M19.8 3.5v4.2h-4.2"/>',
    "plus": '<path d="M12 5v14M5 12h14"/>',
    "minus": '<path d="M5 12h14"/>',
    "edit": '<path d="m14.5 5.5 4 4L8 20H4v-4L14.5 5.5Z"/>',
    "copy": '<rect x="8.5" y="8.5" width="11.5" height="11.5" rx="2"/><path d="M15.5 8.5V6a2 2 0 0 0-2-2H6a2 2 0 0 0-2 2v7.5a2 2 0 0 0 2 2h2.5"/>',
    "trash": '<path d="M4.5 7h15M9.5 7V4.5h5V7M6.5 7l.8 12.5h9.4L17.5 7"/>',
    "download": '<path d="M12 4v11m-4.5-4.5L12 15l4.5-4.5M4.5 19.5h15"/>',
    "search": '<circle cx="10.5" cy="10.5" r="6"/><path d="m15 15 5 5"/>',
    "filter": '<path d="M4 6.5h16M7 12h10m-7 5.5h4"/>',
    "save": '<path d="M5 4.5h11l3 3v12H5v-15Z"/><path d="M8.5 4.5v4.5h6V4.5M8.5 19.5v-6h7v6"/>',
    # directions
    "chevron-right": '<path d="m9.5 6 6 6-6 6"/>',
    "chevron-left": '<path d="m14.5 6-6 6 6 6"/>',
    "chevron-down": '<path d="m6 9.5 6 6 6-6"/>',
    "menu": '<path d="M4 7h16M4 12h16M4 17h16"/>',
    # things
    "dashboard": '<path d="M4 4h7v8H4zm9 0h7v5h-7zM4 15h7v5H4zm9-3h7v8h-7z"/>',
    "site": '<path d="M5 20V6.5L12 3l7 3.5V20M3 20h18M12 7.5v5M9.5 10h5M10 20v-4h4v4"/>',
    "experiment": '<path d="M9.5 3.5h5M10.5 3.5v6L5 18.3A1.5 1.5 0 0 0 6.3 20.5h11.4a1.5 1.5 0 0 0 1.3-2.2L13.5 9.5v-6"/><path d="M7.7 14.5h8.6"/>',
    "dataset": '<ellipse cx="12" cy="6" rx="7.5" ry="2.8"/><path d="M4.5 6v12c0 1.5 3.4 2.8 7.5 2.8s7.5-1.3 7.5-2.8V6M4.5 12c0 1.5 3.4 2.8 7.5 2.8s7.5-1.3 7.5-2.8"/>',
    "model": '<path d="m12 3 8 4.5v9L12 21l-8-4.5v-9L12 3Z"/><path d="m4 7.5 8 4.5 8-4.5M12 12v9"/>',
    "chart": '<path d="M4 4v16h16"/><path d="m7.5 15.5 3.5-5 3 2.5 5-7"/>',
    "round": '<path d="M4 12a8 8 0 0 1 13.7-5.6L20 8.5M20 12a8 8 0 0 1-13.7 5.6L4 15.5"/><path d="M20 4.5v4h-4M4 19.5v-4h4"/>',
    "log": '<path d="M6 3.5h8.5L18.5 8v12.5H6v-17Z"/><path d="M14 3.5V8.5h4.5M9 12.5h6.5M9 16h6.5"/>',
    "user": '<circle cx="12" cy="8" r="4"/><path d="M4.5 20.5c.7-4 3.6-6 7.5-6s6.8 2 7.5 6"/>',
    "key": '<circle cx="8" cy="15.5" r="4"/><path d="m11 12.5 8-8m-3.5 3.5 3 3M13 10.5l2 2"/>',
    "shield": '<path d="M12 3 4.5 6v5.5c0 4.6 3 7.9 7.5 9.5 4.5-1.6 7.5-4.9 7.5-9.5V6L12 3Z"/><path d="m8.8 12 2.3 2.3 4.2-4.4"/>',
    "api": '<path d="m8.5 7.5-5 4.5 5 4.5m7-9 5 4.5-5 4.5M13.5 5l-3 14"/>',
    "settings": '<path d="M4 7.5h8m5 0h3M4 16.5h3m5 0h8"/><circle cx="14.5" cy="7.5" r="2.4"/><circle cx="9.5" cy="16.5" r="2.4"/>',
    "sign-in": '<path d="M14 4.5h5v15h-5M4.5 12h10m-4-4.5L15 12l-4.5 4.5"/>',
    "sign-out": '<path d="M10 4.5H5v15h5M9.5 12h10m-4-4.5L20 12l-4.5 4.5"/>',
    "theme-auto": '<circle cx="12" cy="12" r="8.5"/><path d="M12 3.5v17a8.5 8.5 0 0 0 0-17Z" fill="currentColor"/>',
    "theme-light": '<circle cx="12" cy="12" r="4"/><path d="M12 2.5v2m0 15v2M2.5 12h2m15 0h2M5.3 5.3l1.4 1.4m10.6 10.6 1.4 1.4m0-13.4-1.4 1.4M6.7 17.3l-1.4 1.4"/>',
    "theme-dark": '<path d="M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5Z"/>',
}

OF_COLOUR = {"quiet": "circle", "busy": "busy", "good": "check", "warn": "alert", "bad": "cross"}
"""The icon beside the name of a state, so that a state is never shown by colour alone."""
