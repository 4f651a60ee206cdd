package device

import (
	"errors"
	"fmt"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// ErrTable is wrapped by errors about a table that is damaged, of another
// version, or not what the format allows.
var ErrTable = errors.New("invalid device table")

// The bounds of tables: chunkfmt's default Limits.
const (
	maxGroups = 4 << 20
	maxParts  = 16 << 20 // segments, and checks
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrTable, fmt.Sprintf(format, args...))
}

// validate checks what the rest of the package relies on: places that are in
// the device, in order and apart, and checks that are in their group.
func (t *Table) validate() error {
	b := &t.Blob
	switch {
	case b.External || b.Digest.IsZero() || t.Key.IsZero():
		return invalid("no blob or key")
	case b.DeviceSize < 0 || b.DeviceSize > chunkfmt.MaxFileSize || b.DeviceSize%chunkfmt.BlockSize != 0:
		return invalid("device size %d", b.DeviceSize)
	case len(b.Groups) > maxGroups:
		return invalid("%d groups, at most %d are possible", len(b.Groups), maxGroups)
	case b.Unproven && len(t.Checks) != len(b.Groups) || !b.Unproven && t.Checks != nil:
		return invalid("checks of %d groups", len(t.Checks))
	}
	offset, device := int64(0), int64(0)
	for i := range b.Groups {
		g := &b.Groups[i]
		if g.Offset != offset {
			return invalid("group %d begins at byte %d, not %d", i, g.Offset, offset)
		}
		offset += int64(g.Stored)
		var err error
		if device, err = checkGroup(g, b.Unproven, device); err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
		if b.Unproven {
			if err := checkChecks(t.Checks[i], g); err != nil {
				return fmt.Errorf("group %d: %w", i, err)
			}
		}
	}
	if offset != b.Size || device > b.DeviceSize {
		return invalid("%d stored bytes of %d and %d bytes of a device of %d", offset, b.Size, device, b.DeviceSize)
	}
	return nil
}

// checkGroup checks a group whose places must begin at end, and returns the new
// end.
func checkGroup(g *chunkfmt.Group, unproven bool, end int64) (int64, error) {
	switch {
	case g.Codec > chunkfmt.Filler:
		return 0, invalid("unknown codec %d", g.Codec)
	case g.Stored == 0 || g.Stored > chunkfmt.MaxGroupStored || g.Plain > chunkfmt.MaxGroupPlain:
		return 0, invalid("%d stored and %d plain bytes", g.Stored, g.Plain)
	case (g.Codec == chunkfmt.Filler) != (g.Plain == 0):
		return 0, invalid("%d plain bytes of codec %s", g.Plain, g.Codec)
	case g.Codec == chunkfmt.Plain && g.Plain != g.Stored:
		return 0, invalid("%d bytes stored as %d", g.Plain, g.Stored)
	case g.Digest.IsZero() != unproven:
		return 0, invalid("digest %s", g.Digest)
	case g.Codec == chunkfmt.Filler && (g.Segments != nil || g.Device != 0):
		return 0, invalid("a filler with a place")
	case g.Codec == chunkfmt.Filler:
		return end, nil
	case g.Segments != nil:
		return checkSegments(g, end)
	case g.Device%chunkfmt.BlockSize != 0 || g.Device < end || g.Device > chunkfmt.MaxFileSize:
		return 0, invalid("place %d, taken up to %d", g.Device, end)
	}
	return g.Device + int64(g.Plain), nil
}

func checkSegments(g *chunkfmt.Group, end int64) (int64, error) {
	if g.Device != 0 {
		return 0, invalid("place %d beside segments", g.Device)
	}
	plain := int64(0)
	for _, s := range g.Segments {
		last := int64(s.Offset) + int64(s.Length)
		if s.Length == 0 || int64(s.Offset) < plain || last > int64(g.Plain) ||
			s.Device < end || s.Device > chunkfmt.MaxFileSize {
			return 0, invalid("segment of %d bytes at %d of %d, place %d, taken up to %d", s.Length, s.Offset, g.Plain, s.Device, end)
		}
		plain, end = last, s.Device+int64(s.Length)
	}
	return end, nil
}

func checkChecks(checks []Check, g *chunkfmt.Group) error {
	plain := int64(0)
	for _, c := range checks {
		last := int64(c.Offset) + int64(c.Length)
		if c.Length == 0 || int64(c.Offset) < plain || last > int64(g.Plain) || c.Digest.IsZero() {
			return invalid("chunk of %d bytes at %d of %d", c.Length, c.Offset, g.Plain)
		}
		plain = last
	}
	return nil
}
