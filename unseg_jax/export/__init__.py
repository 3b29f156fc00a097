"""What people take away from a run over image files: pictures, reports, annotations."""
