"""The demo: a training job that saves, is killed in mid-save, and resumes on other numbers of processes."""
