-- Carves a cave with cellular automata, then keeps the largest open region so
-- that the player can reach everything.
local Cave = {}
Cave.__index = Cave

function Cave.new(w, h, fill, seed)
  math.randomseed(seed)
  local self = setmetatable({ w = w, h = h, cells = {} }, Cave)
  for y = 1, h do
    self.cells[y] = {}
    for x = 1, w do
      local border = x == 1 or y == 1 or x == w or y == h
      self.cells[y][x] = border or math.random() < fill
    end
  end
  return self
end

function Cave:wall(x, y)
  local row = self.cells[y]
  if row == nil or row[x] == nil then return true end   -- outside is rock
  return row[x]
end

function Cave:smooth()
  local new = {}
  for y = 1, self.h do
    new[y] = {}
    for x = 1, self.w do
      local walls = 0
      for dy = -1, 1 do
        for dx = -1, 1 do
          if self:wall(x + dx, y + dy) then walls = walls + 1 end
        end
      end
      new[y][x] = walls >= 5      -- counts the cell itself
    end
  end
  self.cells = new
end

-- Flood fill with an explicit stack; recursion overflows on big maps.
function Cave:region(x0, y0, seen)
  local stack, cells = { { x0, y0 } }, {}
  seen[y0 * self.w + x0] = true
  while #stack > 0 do
    local x, y = table.unpack(table.remove(stack))
    cells[#cells + 1] = { x, y }
    for _, d in ipairs { { 1, 0 }, { -1, 0 }, { 0, 1 }, { 0, -1 } } do
      local nx, ny = x + d[1], y + d[2]
      local key = ny * self.w + nx
      if not self:wall(nx, ny) and not seen[key] then
        seen[key] = true
        stack[#stack + 1] = { nx, ny }
      end
    end
  end
  return cells
end

function Cave:keep_largest()
  local seen, best = {}, {}
  for y = 1, self.h do
    for x = 1, self.w do
      if not self.cells[y][x] and not seen[y * self.w + x] then
        local r = self:region(x, y, seen)
        if #r > #best then best = r end
      end
    end
  end
  for y = 1, self.h do
    for x = 1, self.w do self.cells[y][x] = true end
  end
  for _, p in ipairs(best) do self.cells[p[2]][p[1]] = false end
  return #best
end

local cave = Cave.new(60, 22, 0.43, 1234)
for _ = 1, 4 do cave:smooth() end
local open = cave:keep_largest()
for y = 1, cave.h do
  local line = {}
  for x = 1, cave.w do line[x] = cave.cells[y][x] and "#" or "." end
  print(table.concat(line))
end
print(open .. " open cells")
