package device

// Bytes returns what a device takes on the disk, about; false if there is none.
// It is cheap: of a device that is open it is what was last looked at.
func (s *Store) Bytes(key Key) (int64, bool) {
	s.mu.Lock()
	e := s.entries[key]
	s.mu.Unlock()
	if e == nil || e.info.Load() == nil {
		return 0, false
	}
	return e.bytes.Load(), true
}
