-- For wrk: posts the bodies of a file one after the other, again and again, looks at the status of every answer, and
-- prints what it saw as one line of JSON.    wrk OPTION… -s cycle.lua URL -- BODIES CONTENT-TYPE
-- In the file BODIES each body stands after its length in decimal and a line break.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  requests, current, others = {}, 0, {}
  wrk.method = "POST"
  wrk.headers["Content-Type"] = arguments[2]
  local file = assert(io.open(arguments[1], "rb"))
  local length = file:read("*n")
  while length do
    file:read(1)
    wrk.body = file:read(length)
    table.insert(requests, wrk.format())
    length = file:read("*n")
  end
  file:close()
end

function request()
  current = current % #requests + 1
  return requests[current]
end

function response(status)
  if status ~= 200 then
    local name = "status " .. status
    others[name] = (others[name] or 0) + 1
  end
end

function done(summary, latency)
  local faults = {}
  for _, thread in ipairs(threads) do
    for name, count in pairs(thread:get("others")) do
      faults[name] = (faults[name] or 0) + count
    end
  end
  for _, name in ipairs({"connect", "read", "write", "timeout"}) do
    if summary.errors[name] > 0 then
      faults[name] = summary.errors[name]
    end
  end
  local listed = {}
  for name, count in pairs(faults) do
    table.insert(listed, string.format('"%s": %d', name, count))
  end
  io.write(string.format(
    '\n{"requests": %d, "duration_s": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "p99.9_ms": %.3f, "max_ms": %.3f, '
      .. '"faults": {%s}}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency:percentile(99.9) / 1e3, latency.max / 1e3, table.concat(listed, ", ")
  ))
end
