package backend

import "errors"

// ErrLost says that a mount of an earlier process cannot be trusted any more.
var ErrLost = errors.New("the mount was lost")
