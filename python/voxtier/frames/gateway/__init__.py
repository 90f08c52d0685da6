"""Who asks over HTTP? The DICOMweb gateway: `Gateway` starts the core's server and answers its questions."""
