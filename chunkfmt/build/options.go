package build

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/klauspost/compress/zstd"
)

// Codec says how new blobs are compressed.
type Codec uint8

// The codecs of new blobs.
const (
	// Zstd is the default.
	Zstd Codec = iota
	// Plain stores groups as they are.
	Plain
)

// Mode says where the indexes' chunks shall lie.
type Mode uint8

// The modes.
const (
	// Auto indexes a layer in place when it consists of many small gzip
	// members or zstd frames, its digest is known and no trace is given; any
	// other as NewBlob does.
	Auto Mode = iota
	// NewBlob makes a new blob for each layer that has new content.
	NewBlob
	// AsImage makes an ordinary tar+zstd layer of each layer, and an index of
	// it. Trace, Dictionary and Plain do not go with it.
	AsImage
)

// The defaults of Options. See docs of perf/chunkfmt for the measurements.
const (
	DefaultChunkSize   = 512 << 10
	DefaultGroupSize   = 1 << 20
	DefaultLevel       = 3
	DefaultInlineMax   = 128
	DefaultMemoryLimit = 192 << 20
	DefaultMaxPlain    = 1 << 40
	DefaultMaxEntries  = 16 << 20
)

// maxInline bounds Options.InlineMax: a block of EROFS.
const maxInline = chunkfmt.BlockSize

// Options of Build. The zero value means the defaults.
type Options struct {
	// ChunkSize in bytes is how large the slices of a file's content are: a
	// power of two from 4096 to 16 MiB. Default DefaultChunkSize, or GroupSize
	// if that is smaller.
	ChunkSize int64
	// GroupSize in plain bytes is what groups are filled up to: at least
	// ChunkSize, at most 16 MiB, a multiple of 4096. Default DefaultGroupSize,
	// or ChunkSize if that is larger.
	GroupSize int64
	// Codec of new blobs. Default Zstd.
	Codec Codec
	// Level of zstd, 1 to 22. Default DefaultLevel.
	Level int
	// InlineMax is up to how many bytes a file lies in the index itself; -1
	// for none. At most 4096. Default DefaultInlineMax.
	InlineMax int
	// Trace lists what a container reads, in order. What a layer has of it is
	// packed in that order behind the rest.
	Trace []Access
	// Dictionary has the indexes of another image, lowest layer first. Chunks
	// of it are used where they are instead of being stored again.
	Dictionary []*chunkfmt.Index
	// Mode is where the chunks shall lie. Default Auto.
	Mode Mode
	// Workers is how many goroutines compress. Default GOMAXPROCS. Fewer are
	// used when MemoryLimit has no room for so many.
	Workers int
	// MemoryLimit in bytes bounds buffers, with the garbage collector's share.
	// Default DefaultMemoryLimit, at least 32 MiB.
	MemoryLimit int64
	// MaxPlain bounds the bytes of one layer: those of its tar, and those of
	// its files (holes of sparse files count). Default DefaultMaxPlain.
	MaxPlain int64
	// MaxEntries bounds the entries of one layer. Default DefaultMaxEntries.
	MaxEntries int
	// Progress is called now and then, by one goroutine at a time. Build waits
	// for it.
	Progress func(Event)
}

// Event tells how far a layer is.
type Event struct {
	// Layer is the place in Build's layers.
	Layer int
	// Read is how many stored bytes of the layer have been read, of Size (-1:
	// unknown).
	Read, Size int64
	// Done is set once, when the layer has been read and checked.
	Done bool
}

// settings are Options with defaults put in and derived values.
type settings struct {
	Options
	level   zstd.EncoderLevel
	slabs   int
	queue   int
	open    int
	held    int64
	reserve int
}

// resolve checks the options and fills in what they leave open.
func (o Options) resolve() (*settings, error) {
	o.setDefaults()
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("options of the build: %w", err)
	}
	s := &settings{Options: o, level: zstd.EncoderLevelFromZstd(o.Level)}
	// The garbage collector lets the heap grow to twice of what is in use, and
	// the trees need their share.
	room := o.MemoryLimit / 4
	perWorker := encoderMemory(s.level) + 4*o.GroupSize
	s.Workers = int(max(1, min(int64(o.Workers), room*3/4/perWorker)))
	s.queue = s.Workers + 1
	room -= int64(s.Workers) * perWorker
	if len(o.Trace) > 0 {
		s.held = room / 3
		room -= s.held
	}
	// Three that the lowest layer can always have: one being filled for the
	// image, one for other data, and one on the way.
	s.reserve = 3
	s.slabs = int(max(int64(s.reserve+1), room/s.slabSize()))
	s.open = min(max(2, s.Workers), 4)
	if need := int64(s.slabs)*s.slabSize() + int64(s.Workers)*perWorker; need > o.MemoryLimit {
		return nil, fmt.Errorf("options of the build: memory limit of %d bytes: groups of %d take %d", o.MemoryLimit, o.GroupSize, need)
	}
	return s, nil
}

// slabSize is the size of the buffers between scanners and packer.
func (s *settings) slabSize() int64 { return max(s.GroupSize, s.ChunkSize) }

// encoderMemory estimates what a zstd encoder holds.
func encoderMemory(l zstd.EncoderLevel) int64 {
	switch l {
	case zstd.SpeedFastest:
		return 2 << 20
	case zstd.SpeedDefault:
		return 4 << 20
	case zstd.SpeedBetterCompression:
		return 12 << 20
	}
	return 40 << 20
}

func (o *Options) setDefaults() {
	if o.ChunkSize == 0 {
		o.ChunkSize = DefaultChunkSize
		if o.GroupSize >= chunkfmt.BlockSize {
			for o.ChunkSize > o.GroupSize {
				o.ChunkSize /= 2
			}
		}
	}
	if o.GroupSize == 0 {
		o.GroupSize = max(DefaultGroupSize, o.ChunkSize)
	}
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	switch o.InlineMax {
	case 0:
		o.InlineMax = DefaultInlineMax
	case -1:
		o.InlineMax = 0
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.MemoryLimit == 0 {
		o.MemoryLimit = DefaultMemoryLimit
	}
	if o.MaxPlain == 0 {
		o.MaxPlain = DefaultMaxPlain
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
}

func (o *Options) check() error {
	switch {
	case o.ChunkSize < chunkfmt.BlockSize || o.ChunkSize > chunkfmt.MaxGroupPlain || o.ChunkSize&(o.ChunkSize-1) != 0:
		return fmt.Errorf("chunk size %d is no power of two from %d to %d", o.ChunkSize, chunkfmt.BlockSize, chunkfmt.MaxGroupPlain)
	case o.GroupSize < o.ChunkSize || o.GroupSize > chunkfmt.MaxGroupPlain || o.GroupSize%chunkfmt.BlockSize != 0:
		return fmt.Errorf("group size %d is no multiple of %d from the chunk size %d to %d",
			o.GroupSize, chunkfmt.BlockSize, o.ChunkSize, chunkfmt.MaxGroupPlain)
	case o.Codec > Plain:
		return fmt.Errorf("unknown codec %d", o.Codec)
	case o.Level < 1 || o.Level > 22:
		return fmt.Errorf("zstd level %d is not from 1 to 22", o.Level)
	case o.InlineMax < 0 || o.InlineMax > maxInline:
		return fmt.Errorf("inline limit %d is not from -1 to %d", o.InlineMax, maxInline)
	case o.Mode > AsImage:
		return fmt.Errorf("unknown mode %d", o.Mode)
	case o.Workers < 1:
		return fmt.Errorf("%d workers", o.Workers)
	case o.MemoryLimit < 32<<20:
		return fmt.Errorf("memory limit of %d bytes is less than 32 MiB", o.MemoryLimit)
	case o.MaxPlain < 1 || o.MaxEntries < 1:
		return errors.New("a limit of a layer is negative")
	case o.Mode != AsImage:
		return nil
	case len(o.Trace) > 0 || len(o.Dictionary) > 0:
		return errors.New("an image's layers keep all bytes in the order of the tar: neither trace nor dictionary apply")
	case o.Codec == Plain:
		return errors.New("an image's layers are compressed by zstd: codec Plain does not apply")
	}
	return nil
}
