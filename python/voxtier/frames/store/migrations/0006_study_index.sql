-- Searches and retrievals of a study find its files by this, as those of a series do.
CREATE INDEX file_study ON voxtier.file (hashtextextended(study_instance_uid, 0));
