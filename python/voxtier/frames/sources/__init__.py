"""Where bytes come from: addresses of objects, open files; the door to object stores."""
